"""A bundle as one file: packed, and installed so that the old bundle or the new one stands there.

An archive is read in this order, and nothing is written before the last step:

1. Its layout, which has one form only (`pocketlens.core.zip_layout`): no compression, no links.
2. `SHA256SUMS` and `signature`, as bytes: the signature is checked, then the lines are read.
3. The names in the archive are compared with those in `SHA256SUMS`.
4. Every file is hashed where it lies in the archive.
5. The manifest is parsed, and its release compared with the one that is installed.
6. The files are written to a folder beside the target, hashed again on the way, synced, and checked
   as a bundle. A caller's own check runs there, such as loading the graphs in a child process.
7. The folder and the target change places in one step (`pocketlens.core.replace`).
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from pocketlens.core.bundle import Bundle, load_bundle
from pocketlens.core.errors import BundleError, BundleMissing, BundleTampered, storage_errors
from pocketlens.core.manifest import Manifest, check_paths, decode_manifest
from pocketlens.core.release import Installed, check_release, read_installed, remember
from pocketlens.core.replace import check_replaceable, recover, replace_folder, sync_folder, sync_tree
from pocketlens.core.seal import (
    MANIFEST_FILE,
    MAX_SUMS_BYTES,
    SUMS_FILE,
    closed_world,
    hash_differs,
    parse_sums,
    readable,
)
from pocketlens.core.signature import SIGNATURE_FILE, PublicKey, check_signature
from pocketlens.core.zip_layout import (
    MAX_ARCHIVE_BYTES,
    MAX_ENTRIES,
    Entry,
    LayoutFault,
    central_header,
    end_record,
    local_header,
    read_entries,
)

__all__ = ["install_archive", "pack_bundle"]

_CHUNK_BYTES: Final = 2**20


class _Archive(msgspec.Struct, frozen=True):
    """An open archive, every byte of it verified."""

    what: str
    stream: BinaryIO
    entries: Mapping[str, Entry]
    sums: Mapping[str, str]
    signer: PublicKey | None
    manifest: Manifest


def pack_bundle(
    root: str | os.PathLike[str], archive: str | os.PathLike[str], *, trusted_keys: Collection[PublicKey] = ()
) -> Path:
    """Write the bundle at `root` as one file and return its path.

    The same bundle gives the same bytes, always. Nothing is compressed: weights hardly shrink, and so the
    reader has nothing to decompress. A file that stood at `archive` is replaced once the new one is whole.

    Raises:
        BundleError: there is no valid bundle at `root`, it is too large for the format (4 GiB, 10,000
            files), or `archive` cannot be written.
        StorageFull: no space.
    """
    bundle, path = load_bundle(root, trusted_keys=trusted_keys), Path(archive)
    if Path(os.path.realpath(path)).is_relative_to(bundle.root):
        raise BundleError(
            f"archive {path}",
            expected="a path outside the bundle",
            found=f"one inside {bundle.root}",
            remedy="Name a file elsewhere: a bundle holds no file that it does not list.",
        )
    names = sorted(name.relative_to(bundle.root).as_posix() for name in bundle.root.rglob("*") if name.is_file())
    total = sum((bundle.root / name).stat().st_size for name in names)
    if total > MAX_ARCHIVE_BYTES - 2**24 or len(names) > MAX_ENTRIES:  # 16 MiB hold all headers
        raise BundleError(
            f"bundle {root}",
            expected=f"less than {MAX_ARCHIVE_BYTES:,} bytes in at most {MAX_ENTRIES} files",
            found=f"{total:,} bytes in {len(names)} files",
            remedy="Ship it as a folder, or export fewer variants.",
        )
    with _writable(path), tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as folder:
        part = Path(folder, "archive")
        with part.open("w+b") as stream:
            _write_entries(stream, bundle.root, names)
            stream.flush()
            os.fsync(stream.fileno())
        # Read back like anybody's archive: a file that changed meanwhile is found here.
        with _verified(part, trusted_keys):
            part.replace(path)
        sync_folder(path.absolute().parent)
    return path


def install_archive(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    trusted_keys: Collection[PublicKey] = (),
    allow_rollback: bool = False,
    check: Callable[[Bundle], object] | None = None,
) -> Bundle:
    """Unpack an archive to the folder `target`, in one step, and return the bundle.

    A kill at any moment leaves the bundle that stood there or the new one. What a killed installation
    left beside the target is removed by the next one. Two installations beside each other take turns.

    Args:
        archive: a file that `pack_bundle` wrote.
        target: where the bundle goes: nothing, an empty folder or a bundle may stand there.
        trusted_keys: with any of them, the bundle must be signed by one of them. Without, the key that
            the last installation at `target` demanded is demanded again.
        allow_rollback: accept an older release, or another model, than was installed there.
        check: called with the unpacked bundle before it takes its place; what it raises ends the
            installation and leaves everything as it was.

    Raises:
        BundleMissing: there is no such archive, or a file is absent from it.
        BundleTampered: it has another layout, a hash differs, or the signature is wrong or absent.
        BundleSchemaError: its manifest is newer or malformed.
        BundleError: its release is older than the installed one, something else than a bundle stands at
            `target`, or a file cannot be read or written.
        StorageFull: no space; `target` is as it was.
    """
    root = Path(os.path.realpath(target))
    with readable(f"folder {root}"):
        check_replaceable(root, SUMS_FILE)
    before = read_installed(root)
    keys = tuple(trusted_keys) or (before.trusted_keys if before else ())
    with _verified(Path(archive), keys) as source, _writable(root), _folder(root.parent), _turn(root.parent):
        _clear(root)
        before = read_installed(root)
        if not allow_rollback:
            check_release(source.manifest, _standing(root, before), what=source.what)
        with _staged(source, root, check) as staged:
            # First the record: a kill before the exchange leaves the old bundle and the higher number, never
            # the new bundle and a forgotten one.
            signer = str(source.signer) if keys else ""
            remember(root, Installed(name=source.manifest.name, release=source.manifest.release, signer=signer))
            try:
                replace_folder(staged, root)
            except OSError:
                remember(root, before)
                raise
    return Bundle(root, source.manifest, source.signer)


@contextmanager
def _verified(path: Path, trusted_keys: Collection[PublicKey]) -> Iterator[_Archive]:
    """Give the archive at `path`, open, with every byte of it verified and nothing written."""
    what = f"archive {path}"
    with readable(what):
        stream = _open(path, what)
    with stream:
        with readable(what):
            source = _verify(stream, what, trusted_keys)
        yield source


def _verify(stream: BinaryIO, what: str, trusted_keys: Collection[PublicKey]) -> _Archive:
    try:
        entries = {entry.name: entry for entry in read_entries(stream, os.fstat(stream.fileno()).st_size)}
    except LayoutFault as fault:
        raise BundleTampered(
            what,
            expected="an archive as `pocketlens pack` writes it",
            found=str(fault),
            remedy="Do not unpack it. Fetch it again, or pack the bundle with `pocketlens pack`.",
        ) from fault
    if SUMS_FILE not in entries:
        raise BundleMissing(
            what,
            expected=f"a file {SUMS_FILE} at the top of the archive",
            found="none",
            remedy="This is no bundle: make one with `pocketlens pack`.",
        )
    listing = _seal_bytes(stream, entries[SUMS_FILE], what)
    signature = _seal_bytes(stream, entries[SIGNATURE_FILE], what) if SIGNATURE_FILE in entries else None
    signer = check_signature(listing, signature, trusted_keys=trusted_keys, what=what)
    sums = parse_sums(listing, f"{what}, {SUMS_FILE}")
    closed_world(sums, entries.keys() - {SUMS_FILE, SIGNATURE_FILE}, what)
    for name, entry in entries.items():
        _check(stream, entry, sums.get(name), what)
    data = b"".join(_chunks(stream, entries[MANIFEST_FILE]))
    found = hashlib.sha256(data).hexdigest()
    if found != sums[MANIFEST_FILE]:  # it was hashed a moment ago, but these are the bytes that are parsed
        raise hash_differs(f"{what}, {MANIFEST_FILE}", sums[MANIFEST_FILE], found)
    manifest = decode_manifest(data, f"{what}, {MANIFEST_FILE}")
    check_paths(manifest, sums, what)
    return _Archive(what, stream, entries, sums, signer, manifest)


@contextmanager
def _staged(source: _Archive, root: Path, check: Callable[[Bundle], object] | None) -> Iterator[Path]:
    """Give a folder beside `root` with the unpacked, checked and synced bundle; it is gone afterwards."""
    staged = Path(tempfile.mkdtemp(dir=root.parent, prefix=_prefix(root)))
    try:
        for name, entry in source.entries.items():
            _extract(source, entry, staged / name)
        staged.chmod(0o755)
        bundle = load_bundle(staged, trusted_keys=(source.signer,) if source.signer else ())
        if check is not None:
            check(bundle)
        sync_tree(staged)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _standing(root: Path, before: Installed | None) -> Installed | None:
    """Return the newest release that is known of: recorded, or standing there without a record.

    A bundle that was exported or copied to `root` has no record. A killed rollback left one that is too low.
    """
    if not (root / SUMS_FILE).is_file():
        return before
    try:
        manifest = load_bundle(root).manifest
    except BundleError:
        return before  # damaged: an installation repairs it
    standing = Installed(name=manifest.name, release=manifest.release)
    if before is None or before.name != standing.name or before.release < standing.release:
        return standing
    return before


def _open(path: Path, what: str) -> BinaryIO:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
    except FileNotFoundError as error:
        raise BundleMissing(
            what,
            expected="a file that `pocketlens pack` wrote",
            found="no such file",
            remedy="Check the path.",
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BundleMissing(
            what,
            expected="a file that `pocketlens pack` wrote",
            found="a folder, a device or a pipe",
            remedy="Make an archive with `pocketlens pack`.",
        )
    return os.fdopen(handle, "rb")


def _seal_bytes(stream: BinaryIO, entry: Entry, what: str) -> bytes:
    if entry.size > MAX_SUMS_BYTES:
        raise BundleTampered(
            what,
            expected=f"at most {MAX_SUMS_BYTES:,} bytes of {entry.name}",
            found=f"{entry.size:,}",
            remedy="Do not unpack it. Fetch it again from a source that you trust.",
        )
    return b"".join(_chunks(stream, entry))


def _check(stream: BinaryIO, entry: Entry, digest: str | None, what: str) -> None:
    """Compare a file's SHA-256 with its line, and its CRC-32, which other programs look at."""
    hashed, crc = hashlib.sha256(), 0
    for chunk in _chunks(stream, entry):
        hashed.update(chunk)
        crc = zlib.crc32(chunk, crc)
    if digest is not None and hashed.hexdigest() != digest:
        raise hash_differs(f"{what}, {entry.name}", digest, hashed.hexdigest())
    if crc != entry.crc:
        raise BundleTampered(
            f"{what}, {entry.name}",
            expected=f"CRC-32 {entry.crc:08x}",
            found=f"CRC-32 {crc:08x}",
            remedy="The archive was changed or damaged: fetch it again.",
        )


def _extract(source: _Archive, entry: Entry, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed = hashlib.sha256()
    with path.open("xb") as stream:
        for chunk in _chunks(source.stream, entry):
            hashed.update(chunk)
            stream.write(chunk)
    digest = source.sums.get(entry.name)
    if digest is not None and hashed.hexdigest() != digest:  # the archive changed under our hands
        raise hash_differs(f"{source.what}, {entry.name}", digest, hashed.hexdigest())


def _chunks(stream: BinaryIO, entry: Entry) -> Iterator[bytes]:
    stream.seek(entry.offset)
    left = entry.size
    while left:
        chunk = stream.read(min(left, _CHUNK_BYTES))
        if not chunk:
            return  # shorter than a moment ago: the hash will differ
        left -= len(chunk)
        yield chunk


def _write_entries(stream: BinaryIO, root: Path, names: Collection[str]) -> None:
    directory = b""
    for name in names:
        position, size, crc = stream.tell(), 0, 0
        stream.write(local_header(name, 0, 0))
        with (root / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                stream.write(chunk)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        end = stream.tell()
        stream.seek(position)
        stream.write(local_header(name, size, crc))
        stream.seek(end)
        directory += central_header(name, size, crc, position)
    start = stream.tell()
    stream.write(directory + end_record(len(names), len(directory), start))


def _prefix(root: Path) -> str:
    return f".{root.name}.install-"


def _clear(root: Path) -> None:
    """Remove what a killed installation left beside `root`; nobody else installs there meanwhile."""
    recover(root)
    for path in list(root.parent.iterdir()):
        if path.name.startswith(_prefix(root)):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder and those above it, and remove what was made where something fails."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody put a file there meanwhile
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: on the folder itself, so that no lock file is left behind."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        with storage_errors(path):
            yield
    except OSError as error:
        raise BundleError(
            f"writing {error.filename or path}",
            expected="a folder that can be written to",
            found=error.strerror or type(error).__name__,
            remedy="Check the path, its permissions and the disk.",
        ) from error
