"""The file format of a reinforced data set: named arrays in safetensors files, mapped and read by row.

N pictures of a shard, R views, M texts (human captions of a picture, then those that the teacher wrote), W written
captions, D the teacher's embedding width, L the longest written caption in the teacher's ids, k alternatives a token:

====================  ====================  =================================================================
images                (N, R, D)             teacher embeddings of each view, float16, or int8 with a scale
images_scale          (N, R) float32        only with int8: what a vector is multiplied by
params                (N, R, 7) float32     the views, see `pocketlens.distill.augment`
text_ends             (N,) int64            texts of pictures 0 to i together
written               (N,) int32            how many of a picture's texts, the last ones, the teacher wrote
texts, texts_scale    (M, D), (M,)          teacher embeddings of each text, as `images`
logprobs              (W,) float32          log-probability of each written caption
utf8, utf8_ends       (bytes,), (W,)        the written captions
top_ids               (W, L, k) int32       the k likeliest ids at each position, in the captioner's vocabulary
top_logprobs          (W, L, k) float16     their log-probabilities; rows beyond a caption's end are all 0
caption_ids           (W, L) int32          the captioner's own ids, padded with -1
====================  ====================  =================================================================
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pocketlens.core.errors import DataError, storage_errors

__all__ = ["bytes_by_name", "open_shard", "pack_texts", "pack_vectors", "unpack_vectors", "write_shard"]

_DTYPES: Final = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}
_HEADER_LIMIT: Final = 2**20


def write_shard(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write `arrays` to `path`, whole or not at all.

    Raises:
        StorageFull: no space left.
    """
    partial = path.with_suffix(".partial")
    with storage_errors(path):
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
        partial.rename(path)


def open_shard(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a shard, mapped: nothing is read before it is asked for.

    Raises:
        DataError: the file is missing, damaged or no shard.
    """
    try:
        # The format: 8 bytes length, so much JSON, then the arrays. Mapping them by hand gives rows without copies.
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            size = file.seek(0, 2)
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if end - begin != dtype.itemsize * int(np.prod(shape)) or 8 + length + end > size:
                raise ValueError(f"{name} does not lie in the file")
            whole = end > begin
            arrays[name] = np.memmap(path, dtype, "r", 8 + length + begin, shape) if whole else np.empty(shape, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"shard {path}",
            expected="a shard that `pocketlens distill reinforce` wrote",
            found=f"{type(error).__name__}: {error}",
            remedy="Delete the file and run `pocketlens distill reinforce` again; the other shards are kept.",
        ) from error
    return arrays


def bytes_by_name(paths: Sequence[Path]) -> dict[str, int]:
    """Return the bytes that each array takes in all shards together.

    Raises:
        DataError: a shard is missing or damaged.
    """
    sums: dict[str, int] = {}
    for path in paths:
        for name, array in open_shard(path).items():
            sums[name] = sums.get(name, 0) + array.nbytes
    return sums


def pack_vectors(name: str, vectors: NDArray[np.float32], *, int8: bool) -> dict[str, NDArray[np.generic]]:
    """Return `vectors (…, D)` as float16, or as int8 with one scale a vector: symmetric, 127 for the largest entry."""
    if not int8:
        return {name: vectors.astype(np.float16)}
    scale = np.abs(vectors).max(axis=-1) / 127.0
    steps = np.where(scale > 0.0, scale, 1.0)[..., None]
    return {name: np.rint(vectors / steps).astype(np.int8), f"{name}_scale": scale.astype(np.float32)}


def unpack_vectors(
    shard: Mapping[str, NDArray[Any]], name: str, rows: tuple[NDArray[np.intp], ...]
) -> NDArray[np.float32]:
    """Return the vectors at `rows` as float32."""
    vectors: NDArray[np.float32] = shard[name][rows].astype(np.float32)
    scale = shard.get(f"{name}_scale")
    return vectors if scale is None else vectors * scale[rows][..., None]


def pack_texts(texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Return `texts` as `utf8` and `utf8_ends`."""
    encoded = [text.encode("utf-8") for text in texts]
    return {
        "utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "utf8_ends": np.cumsum([len(text) for text in encoded], dtype=np.int64),
    }
