"""What was measured for one bundle on one device, and the file in the user's cache that keeps it.

A file that is damaged, of another format, of another bundle or of another device counts as none:
`load` then does what it does on a device that was never tuned.
"""

import os
import tempfile
from pathlib import Path
from typing import Final, Literal

import msgspec
from platformdirs import user_cache_path

from pocketlens.core.bundle import Bundle, Role, file_sha256
from pocketlens.core.errors import EngineError, storage_errors
from pocketlens.core.seal import SUMS_FILE
from pocketlens.runtime.engines.specs import EngineSpec, parse_engine
from pocketlens.runtime.tuning.device import Device, this_device

__all__ = ["Measurement", "Profile", "Status", "bundle_sha256", "load_profile", "profile_path", "save_profile"]

Status = Literal["measured", "wrong", "failed", "crashed", "not_tried"]
"""`wrong`: answers the golden inputs otherwise than it must. `failed`: does not load or run. `crashed`: killed
the child process or went over its limits. `not_tried`: the time was over."""

_FORMAT: Final = 1
_MAX_BYTES: Final = 2**20


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run one graph, and what came of it.

    Attributes:
        role: of the graph.
        engine: as `engine=` takes it.
        precision: of the graph.
        path: of the graph, in the bundle.
        threads: CPU threads of one call.
        status: what came of it.
        figure: how it answered the golden inputs (smallest cosine; share of equal captions for the
            decode step), at least `limit` if it is right.
        limit: see `figure`.
        p50_ms: median wall time of a call at batch 1.
        p90_ms: nine of ten calls took no longer.
        runs: timed calls.
        note: why it is not measured.
    """

    role: Role
    engine: str
    precision: str
    path: str
    threads: int
    status: Status
    figure: float | None = None
    limit: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    runs: int = 0
    note: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """All measurements of one bundle on one device.

    Attributes:
        model_version: the bundle's.
        bundle_sha256: of its `SHA256SUMS`, and so of every byte in it.
        device: where it was measured.
        seconds: how long that took.
        measurements: in the order of roles.
    """

    format: int = _FORMAT
    model_version: str
    bundle_sha256: str
    device: Device
    seconds: float
    measurements: tuple[Measurement, ...]

    @property
    def rejected(self) -> set[tuple[EngineSpec, str]]:
        """Engines and graphs that are wrong, fail or crash here, whatever the number of threads."""
        pairs = {(parse_engine(m.engine), m.path): m.status == "measured" for m in self.measurements}
        for m in self.measurements:
            pairs[parse_engine(m.engine), m.path] |= m.status in {"measured", "not_tried"}
        return {pair for pair, usable in pairs.items() if not usable}


def bundle_sha256(bundle: Bundle) -> str:
    """Return the SHA-256 of the bundle's `SHA256SUMS`, which holds the hash of every other file."""
    return file_sha256(bundle.root / SUMS_FILE)


def profile_path(bundle: Bundle, device: Device | None = None) -> Path:
    """Return where the profile of `bundle` on `device` (by default this one) is kept, there or not."""
    return _folder() / f"{bundle_sha256(bundle)[:32]}-{(device or this_device()).key[:32]}.json"


def load_profile(bundle: Bundle) -> Profile | None:
    """Return what was measured for `bundle` on this device, `None` where nothing usable is kept."""
    try:
        digest = bundle_sha256(bundle)
        # The device is looked at only where there is something to compare it with.
        if not any(_folder().glob(f"{digest[:32]}-*.json")):
            return None
        device = this_device()
        with open(profile_path(bundle, device), "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        profile = msgspec.json.decode(data, type=Profile) if len(data) <= _MAX_BYTES else None
        for measurement in profile.measurements if profile else ():
            parse_engine(measurement.engine)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, EngineError):
        return None
    if profile is None or (profile.format, profile.bundle_sha256, profile.device) != (_FORMAT, digest, device):
        return None
    return profile


def save_profile(bundle: Bundle, profile: Profile) -> Path:
    """Keep `profile` for `load`, in one step, and return the file's path.

    Raises:
        StorageFull: no space.
        EngineError: the cache folder cannot be written.
    """
    path = profile_path(bundle, profile.device)
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
                try:
                    file.write(msgspec.json.format(msgspec.json.encode(profile), indent=1))
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, path)
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise
    except OSError as error:
        raise EngineError(
            f"profile {path}",
            expected="a cache folder that can be written",
            found=error.strerror or type(error).__name__,
            remedy="Make this user's cache folder writable.",
        ) from error
    return path


def _folder() -> Path:
    return user_cache_path("pocketlens") / "tuning"
