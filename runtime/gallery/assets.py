"""The files of the page, read once from this package: the closed list of what a browser can load."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Final, NamedTuple

__all__ = ["Asset", "page_assets"]

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_START: Final = "gallery.html"


class Asset(NamedTuple):
    """A file and its content type."""

    content_type: str
    data: bytes


def page_assets() -> Mapping[str, Asset]:
    """Return the page's files by their path on the server."""
    assets = {}
    for file in files("pocketlens.runtime.gallery").joinpath("page").iterdir():
        ending = file.name.rpartition(".")[2]
        if ending in _TYPES:
            path = "/" if file.name == _START else f"/{file.name}"
            assets[path] = Asset(_TYPES[ending], file.read_bytes())
    return assets
