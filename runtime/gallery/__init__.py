"""A web page for one store, served to this machine only: search, more like this, upgrade, deletion.

`server` speaks HTTP, `guard` decides who may ask, `gallery` answers, `page/` is what a browser gets.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.runtime.gallery.gallery import Gallery
    from pocketlens.runtime.gallery.server import GalleryServer

__all__ = ["Gallery", "GalleryServer"]


def __getattr__(name: str) -> object:
    if name == "Gallery":
        from pocketlens.runtime.gallery.gallery import Gallery

        return Gallery
    if name == "GalleryServer":
        from pocketlens.runtime.gallery.server import GalleryServer

        return GalleryServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
