"""A captioned picture, and a split of them that is read from disk as it is needed."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar, cast, overload

import msgspec
import numpy as np

from pocketlens.core.errors import DataError, storage_errors

__all__ = ["PictureFile", "Sample", "SampleList", "TarPicture", "as_source", "extracted", "read_samples"]

_REMEDY = "Prepare the data set again; finished work is kept."


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One picture of a data set with what is known about it.

    Attributes:
        id: unique in the data set, e.g. `train/000001`.
        image: path of the picture, relative to the data set's folder or absolute; with a `span`, of the tar that holds
            it.
        span: (offset, length) in bytes of the picture inside a tar that is not compressed.
        captions: human captions, none for a picture that only a teacher describes.
        kinds: the kinds of object that the picture shows, sorted; empty where nobody counted.
        source: the data set that it comes from.
        licence: of picture and captions.
        sha256: of the picture's file, in hex.
    """

    id: str
    image: str
    span: tuple[int, int] | None = None
    captions: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    sha256: str = ""

    def picture(self, folder: Path) -> "PictureFile":
        """Return the picture's file; `folder` is the data set's."""
        path = folder / self.image  # an absolute path stays what it is
        return path if self.span is None else TarPicture(path, *self.span)


class TarPicture(NamedTuple):
    """A picture inside a tar. Takes the place of a binary file: each `read` starts at its first byte.

    Attributes:
        path: the tar.
        offset, length: where the picture's bytes lie in it.
    """

    path: Path
    offset: int
    length: int

    def read(self, size: int = -1) -> bytes:
        """Return the first `size` bytes of the picture, all of them for a negative `size`.

        Raises:
            OSError: the tar cannot be read.
        """
        with self.path.open("rb") as tar:
            tar.seek(self.offset)
            return tar.read(self.length if size < 0 else min(size, self.length))


PictureFile = Path | TarPicture
"""Where a sample's picture is."""


def as_source(picture: PictureFile) -> Path | BinaryIO:
    """Return `picture` as what `pocketlens.core.preprocess.preprocess` takes."""
    return picture if isinstance(picture, Path) else cast("BinaryIO", picture)


def extracted(sample: Sample, folder: Path, cache: Path) -> Path:
    """Return the picture of `sample` as a file of its own, copied out of its tar into `cache` where it is in one.

    Raises:
        DataError: the tar is not there.
        StorageFull: no space left.
    """
    picture = sample.picture(folder)
    if isinstance(picture, Path):
        return picture
    name = hashlib.sha256(f"{picture.path}\0{picture.offset}\0{picture.length}".encode()).hexdigest()[:24]
    path = cache / name
    if not path.exists():
        try:
            content = picture.read()
        except OSError as error:
            raise DataError(
                f"picture {sample.id}", expected=f"the tar {picture.path}", found=str(error), remedy=_REMEDY
            ) from error
        with storage_errors(path):
            cache.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(path)
    return path


_S = TypeVar("_S", bound=msgspec.Struct)


class SampleList(Sequence[_S], Generic[_S]):
    """The samples of one JSONL file, decoded when they are asked for: 8 bytes of memory a sample.

    Args:
        path: the file, one sample a line.
        kind: what a line is.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path, kind: type[_S]) -> None:
        self._path, self._decoder = path, msgspec.json.Decoder(kind)
        try:
            # Mapped, not read: pages come and go as they are needed, and threads may read at once.
            self._bytes = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
            self._starts = _line_starts(path)
        except OSError as error:
            raise DataError(
                str(path), expected="a readable data set", found=error.strerror or str(error), remedy=_REMEDY
            ) from error

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> _S: ...

    @overload
    def __getitem__(self, index: slice) -> list[_S]: ...

    def __getitem__(self, index: int | slice) -> _S | list[_S]:
        """Return one sample, or those of a slice as a list.

        Raises:
            DataError: a line is malformed.
            IndexError: there is no such sample.
        """
        if isinstance(index, slice):
            return [self._read(row) for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._read(row)

    def __iter__(self) -> Iterator[_S]:
        return map(self._read, range(len(self)))

    def _read(self, row: int) -> _S:
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        try:
            return self._decoder.decode(self._bytes[start:stop].tobytes())
        except msgspec.MsgspecError as error:
            raise DataError(
                f"{self._path}, line {row + 1}", expected="one sample as JSON", found=str(error), remedy=_REMEDY
            ) from error


def read_samples(folder: Path, split: str) -> SampleList[Sample]:
    """Return the samples of `split`, in the order of the data set in `folder`.

    Raises:
        DataError: there is no such split.
    """
    return SampleList(folder / f"{split}.jsonl", Sample)


def _line_starts(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return where each line starts and, last, where the file ends; a last line needs no newline."""
    starts, offset = [np.zeros(1, dtype=np.int64)], 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            starts.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + 1 + offset)
            offset += len(block)
    found = np.concatenate(starts)
    return found if found[-1] == offset else np.append(found, offset)
