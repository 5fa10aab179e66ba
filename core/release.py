"""Which release of a model was installed at a path, so that an older one is refused.

A signature says who made a bundle, not that it is the newest one: an attacker can serve an old, validly
signed bundle with a known fault. So an installation remembers, beside the bundle::

    .NAME.installed        {"name": "...", "release": 7, "signer": "<hex>"}

`release` is the number in the manifest; `signer` the key that was demanded at the last installation,
demanded again at the next one unless the caller names other keys. The file outlives the bundle.
"""

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from pocketlens.core.errors import BundleError
from pocketlens.core.manifest import Manifest
from pocketlens.core.replace import sync_folder
from pocketlens.core.seal import readable
from pocketlens.core.signature import PublicKey

__all__ = ["Installed", "check_release", "read_installed", "remember"]

_MAX_RECORD_BYTES: Final = 4096


class Installed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands, or stood, at a path. `signer` is 64 hexadecimal digits, or empty where no key was demanded."""

    name: str
    release: Annotated[int, msgspec.Meta(ge=0)]
    signer: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""

    @property
    def trusted_keys(self) -> tuple[PublicKey, ...]:
        """The key to demand when the caller names none."""
        return (PublicKey(bytes.fromhex(self.signer)),) if self.signer else ()


def read_installed(root: Path) -> Installed | None:
    """Return what was installed at `root`, or `None` where nothing ever was.

    Raises:
        BundleError: the record cannot be read. It is not skipped: that would forget the release.
    """
    path = _record(root)
    with readable(f"record {path}"):
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_RECORD_BYTES)
        except FileNotFoundError:
            return None
    try:
        return msgspec.json.decode(data, type=Installed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(
            f"record {path}",
            expected="what `pocketlens install` wrote about the installed release",
            found=str(error),
            remedy="Delete the file if you know that the bundle to be installed is the newest.",
        ) from error


def check_release(manifest: Manifest, standing: Installed | None, *, what: str) -> None:
    """Check that `manifest` is of the model in `standing`, and of no older release.

    The same number is accepted: a damaged installation is repaired with the bundle that it came from.

    Raises:
        BundleError: it is older, or another model.
    """
    if standing is None:
        return
    if manifest.name != standing.name:
        raise BundleError(
            what,
            expected=f"a release of the model {standing.name}, which is installed there",
            found=f"the model {manifest.name}",
            remedy="Install it into another folder, or allow it with --allow-rollback.",
        )
    if manifest.release < standing.release:
        raise BundleError(
            what,
            expected=f"release {standing.release} of {standing.name} or a later one",
            found=f"release {manifest.release}",
            remedy="Fetch the newest bundle. If you want the older one, allow it with --allow-rollback.",
        )


def remember(root: Path, installed: Installed | None) -> None:
    """Write what is installed at `root`, `None` for nothing; a kill leaves the old record or the new one.

    Raises:
        OSError: it cannot be written.
    """
    path = _record(root)
    if installed is None:
        path.unlink(missing_ok=True)
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(msgspec.json.encode(installed) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _record(root: Path) -> Path:
    return root.with_name(f".{root.name}.installed")
