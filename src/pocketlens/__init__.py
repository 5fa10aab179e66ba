"""pocketlens: compact captioning and embedding models, exported, verified and run on the device.

>>> import pocketlens
>>> lens = pocketlens.load("bundle/")        # doctest: +SKIP
>>> lens.caption("cat.jpg").text             # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.core.captions import Caption
    from pocketlens.core.errors import PocketlensError
    from pocketlens.runtime.lens import Lens, load

__all__ = ["Caption", "Lens", "PocketlensError", "__version__", "load"]

__version__ = "0.1.0"

_HOMES = {
    "Caption": "pocketlens.core.captions",
    "Lens": "pocketlens.runtime.lens",
    "PocketlensError": "pocketlens.core.errors",
    "load": "pocketlens.runtime.lens",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use: `import pocketlens` itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
