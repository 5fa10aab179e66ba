"""`SHA256SUMS`: the closed world of a bundle, and how a folder is held to it.

The order is fixed, and nothing is parsed before it is verified:

1. The bytes of `SHA256SUMS` and of `signature` are read, both bounded. The signature is checked.
2. `SHA256SUMS` is read line by line, strictly.
3. The folder is walked: links and special files are refused, then missing files, then extra ones.
4. Every file is hashed.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pocketlens.core.errors import BundleError, BundleMissing, BundleTampered
from pocketlens.core.names import name_fault, names_fault
from pocketlens.core.signature import SIGNATURE_FILE, PublicKey, check_signature

__all__ = [
    "MANIFEST_FILE",
    "MAX_SUMS_BYTES",
    "SUMS_FILE",
    "closed_world",
    "file_sha256",
    "hash_differs",
    "parse_sums",
    "read_verified",
    "readable",
    "sums_of",
    "tree_digest",
    "verified_sums",
    "verify_files",
    "walk",
]

MANIFEST_FILE: Final = "manifest.json"
SUMS_FILE: Final = "SHA256SUMS"
MAX_SUMS_BYTES: Final = 4 * 2**20
"""No longer `SHA256SUMS` is read: 10,000 files with the longest names need less."""

_DIGITS: Final = frozenset("0123456789abcdef")


def verify_files(root: Path, *, trusted_keys: Collection[PublicKey] = ()) -> None:
    """Check that the folder holds exactly what its `SHA256SUMS` lists, bit for bit.

    Raises:
        BundleMissing: no such folder, no sums, or a listed file is absent.
        BundleTampered: a hash differs, a file is not listed, a link is inside, or the signature is wrong.
        BundleError: a file cannot be read, or a signature cannot be checked here.
    """
    verified_sums(root, trusted_keys=trusted_keys)


def verified_sums(root: Path, *, trusted_keys: Collection[PublicKey] = ()) -> tuple[dict[str, str], PublicKey | None]:
    """Return the digests by name and the key that signed them, after every file was verified.

    Raises:
        BundleError: as `verify_files`.
    """
    what = f"bundle {root}"
    with readable(what):
        sums, signature = _read_seal(root)
        signer = check_signature(sums, signature, trusted_keys=trusted_keys, what=what)
        expected = parse_sums(sums, f"{root / SUMS_FILE}")
        present = set(walk(root)) - {SUMS_FILE, SIGNATURE_FILE}
        closed_world(expected, present, what)
        for name, digest in sorted(expected.items()):
            found = file_sha256(root / name)
            if found != digest:
                raise hash_differs(f"bundle file {root / name}", digest, found)
    return expected, signer


def read_verified(root: Path, name: str, sums: Mapping[str, str]) -> bytes:
    """Return the bytes of one file, whose hash is that of exactly these bytes.

    For what is parsed at once: between hashing a file and opening it again, it could change.

    Raises:
        BundleTampered: the hash differs.
        BundleError: the file cannot be read.
    """
    with readable(f"bundle file {root / name}"):
        data = (root / name).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sums[name]:
        raise hash_differs(f"bundle file {root / name}", sums[name], found)
    return data


def parse_sums(data: bytes, what: str) -> dict[str, str]:
    """Return the digests by name that the bytes of a `SHA256SUMS` list.

    Raises:
        BundleTampered: a line is not 64 lower-case hexadecimal digits, two blanks and a name that
            means the same file everywhere; two names meet; or the manifest is not listed.
    """
    sums: dict[str, str] = {}
    # Not splitlines(): it also splits at a vertical tab, which is one bit away from a newline.
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line and sums:
            break  # after the last newline
        digest, separator, name = line.decode("latin-1").partition("  ")
        fault = name_fault(name)
        if number == len(lines) or not separator or len(digest) != 64 or not _DIGITS.issuperset(digest):
            fault = repr(line[:100])
        elif name in {SUMS_FILE, SIGNATURE_FILE}:
            fault = f"{name} itself"
        elif name in sums:
            fault = f"{name} twice"
        if fault:
            raise _malformed(
                f"{what}, line {number}",
                "64 hexadecimal digits, two spaces and a relative path, each path once, and a newline",
                fault,
            )
        sums[name] = digest
    if fault := names_fault(sums):
        raise _malformed(what, "names that stay apart on every system", fault)
    if MANIFEST_FILE not in sums:
        raise _malformed(what, f"a line for {MANIFEST_FILE}", "none")
    return sums


def sums_of(root: Path) -> str:
    """Return the `SHA256SUMS` of the folder as it is, sorted by name."""
    names = sorted(set(walk(root)) - {SUMS_FILE, SIGNATURE_FILE})
    return "".join(f"{file_sha256(root / name)}  {name}\n" for name in names)


def closed_world(expected: Collection[str], present: Collection[str], what: str) -> None:
    """Check that both name the same files.

    Raises:
        BundleMissing: an expected file is not present.
        BundleTampered: a present file is not expected.
    """
    for name in sorted(set(expected) - set(present)):
        raise BundleMissing(
            what,
            expected=f"the file {name}, which {SUMS_FILE} lists",
            found="no such file",
            remedy="Copy or export the bundle again.",
        )
    for name in sorted(set(present) - set(expected)):
        raise BundleTampered(
            what,
            expected="only files that its manifest lists",
            found=f"an extra file {name}",
            remedy="Remove the file, or fetch the bundle again from a source that you trust.",
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of one file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """Return one SHA-256 for a file, or for a folder: the hash of its sorted `digest  name` lines."""
    if path.is_file():
        return file_sha256(path)
    return _digest_lines(f"{file_sha256(path / name)}  {name}\n" for name in sorted(walk(path)))


def walk(root: Path) -> Iterator[str]:
    """Yield every file below `root` as a relative POSIX path.

    Raises:
        BundleTampered: a link or a special file is inside.
        OSError: a folder cannot be listed.
    """
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in folders + files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise BundleTampered(
                    f"bundle {root}",
                    expected="plain files and folders",
                    found=f"a link or special file {path.relative_to(root)}",
                    remedy="A bundle never holds links: fetch it again from a source that you trust.",
                )
        for name in files:
            yield Path(folder, name).relative_to(root).as_posix()


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what the system says while a bundle is read into a `BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            what if error.filename is None else f"bundle file {error.filename}",
            expected="a file or folder that can be read",
            found=error.strerror or type(error).__name__,
            remedy="Check its permissions and the disk.",
        ) from error


def hash_differs(what: str, expected: str, found: str) -> BundleTampered:
    """Return the error for a file whose bytes are not those that were sealed."""
    return BundleTampered(
        what,
        expected=f"SHA-256 {expected}",
        found=f"SHA-256 {found}",
        remedy="The file was changed or damaged: copy or export the bundle again.",
    )


def _digest_lines(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error


def _read_seal(root: Path) -> tuple[bytes, bytes | None]:
    """Return the bytes of `SHA256SUMS` and of `signature`, unparsed."""
    if not root.is_dir():
        raise BundleMissing(
            f"bundle {root}",
            expected="a folder that holds a bundle",
            found="a file" if root.exists() else "nothing at that path",
            remedy="Check the path, or make a bundle with `pocketlens export`.",
        )
    sums = _read_plain(root / SUMS_FILE)
    if sums is None:
        raise BundleMissing(
            f"bundle {root}",
            expected=f"a file {SUMS_FILE}",
            found="none",
            remedy="This folder is no bundle, or only part of one: copy or export it again.",
        )
    return sums, _read_plain(root / SIGNATURE_FILE)


def _read_plain(path: Path) -> bytes | None:
    """Return the bytes of a small plain file; `None` where there is nothing, an error where there is another thing."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise BundleTampered(
            f"bundle {path.parent}",
            expected=f"a plain file {path.name}",
            found=f"a link, a folder or a special file {path.name}",
            remedy="A bundle never holds links: fetch it again from a source that you trust.",
        )
    with path.open("rb") as stream:
        data = stream.read(MAX_SUMS_BYTES + 1)
    if len(data) > MAX_SUMS_BYTES:
        raise _malformed(str(path), f"at most {MAX_SUMS_BYTES:,} bytes", "more")
    return data


def _malformed(what: str, expected: str, found: str) -> BundleTampered:
    return BundleTampered(
        what,
        expected=expected,
        found=found,
        remedy="The file was changed or damaged: copy or export the bundle again.",
    )
