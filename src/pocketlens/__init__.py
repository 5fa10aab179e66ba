"""pocketlens: compact captioning and embedding models, exported, verified and run on the device.

>>> import pocketlens
>>> lens = pocketlens.load("bundle/")        # doctest: +SKIP
>>> lens.caption("cat.jpg").text             # doctest: +SKIP
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.core.captions import Caption
    from pocketlens.core.errors import PocketlensError
    from pocketlens.runtime.lens import Lens, load

__all__ = ["Caption", "Lens", "PocketlensError", "__version__", "load"]

__version__ = "0.1.0"

# ONNX Runtime reports its use to its maker unless told not to (since 1.29; it keeps a device id and an event database
# in the home folder). Nothing leaves a device here without consent. Set before anything imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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
