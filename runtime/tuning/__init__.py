"""Which engine is fastest on this device: measured once for each bundle, kept, and used by `load`.

Names are loaded at first use: `load` reads a profile and needs nothing of what made it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.runtime.tuning.device import Device, this_device
    from pocketlens.runtime.tuning.profile import Measurement, Profile, load_profile, profile_path
    from pocketlens.runtime.tuning.tuner import tune

__all__ = ["Device", "Measurement", "Profile", "load_profile", "profile_path", "this_device", "tune"]

_HOMES = {
    "Device": "device",
    "Measurement": "profile",
    "Profile": "profile",
    "load_profile": "profile",
    "profile_path": "profile",
    "this_device": "device",
    "tune": "tuner",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
