"""Teachers run once: what they say about every picture, in shards that training reads.

A shard is one safetensors file, `shard-<number>-<key>.safetensors`, written whole or not at all. Its
key hashes the teachers' weights, the pictures, the captions and the augmentations, so a run that is
repeated after a kill skips what is done and never takes an old shard for a new one.

Letters: `N` pictures of a shard, `R` views (seeded augmentations, the first one unchanged),
`C` human captions a picture, `D` the teacher's embedding width.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pocketlens.core.bundle import tree_digest
from pocketlens.core.errors import DataError, storage_errors
from pocketlens.distill import augment
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.pictures import batches
from pocketlens.distill.teachers.teacher import CaptioningTeacher, EmbeddingTeacher
from pocketlens.distill.threads import single_threads

__all__ = ["Reinforced", "read_reinforced", "reinforce"]

_BATCH = 64


class Reinforced(msgspec.Struct, frozen=True, kw_only=True):
    """A reinforced data set in memory, rows in the order of the samples.

    Attributes:
        images: `(N, R, D)` float16, teacher embeddings of each view.
        texts: `(N, C + 1, D)` float16, teacher embeddings of the human captions and, last, of its own.
        captions: N captions that the captioning teacher wrote.
        logprobs: `(N,)` float32, their log-probabilities.
        params: `(N, R, 4)` float32, see `pocketlens.distill.augment`.
    """

    images: NDArray[np.float16]
    texts: NDArray[np.float16]
    captions: tuple[str, ...]
    logprobs: NDArray[np.float32]
    params: NDArray[np.float32]


def reinforce(
    samples: Sequence[Sample],
    *,
    embedder: EmbeddingTeacher,
    captioner: CaptioningTeacher,
    embedder_pixels: NDArray[np.uint8],
    captioner_pixels: NDArray[np.uint8],
    teacher_folders: Sequence[Path],
    folder: Path,
    views: int,
    shard: int,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Ask the teachers about every sample and return the shards, finished ones reused.

    Args:
        samples: the pictures' captions.
        embedder: the embedding teacher.
        captioner: the captioning teacher.
        embedder_pixels: `(N, H, W, 3)` uint8, preprocessed by the embedder's spec.
        captioner_pixels: likewise by the captioner's.
        teacher_folders: hashed into the key.
        folder: where shards go.
        views: R, augmentations a picture.
        shard: pictures a shard.
        seed: of the augmentations.
        workers: shards that are made at once, each in a thread.
        progress: called with (pictures done, pictures in all).

    Raises:
        StorageFull: the disk is full; finished shards are kept.
    """
    base = hashlib.sha256(json.dumps([[tree_digest(f) for f in teacher_folders], views, seed]).encode())
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def make(number: int, rows: slice) -> Path:
        digest = base.copy()
        digest.update(msgspec.json.encode(samples[rows]))
        digest.update(embedder_pixels[rows].tobytes())
        params = np.stack(
            [[augment.parameters(seed, i, v) for v in range(views)] for i in range(rows.start, rows.stop)]
        )
        digest.update(params.tobytes())
        path = folder / f"shard-{number:05d}-{digest.hexdigest()[:16]}.safetensors"
        if not path.exists():
            tensors, captions = _ask(
                samples[rows], embedder, captioner, embedder_pixels[rows], captioner_pixels[rows], params
            )
            partial = path.with_suffix(".partial")
            with storage_errors(path):
                save_file(tensors, partial, metadata={"captions": json.dumps(captions)})
                partial.rename(path)
        return path

    # Shards beside each other, not each operator split over threads: see `pocketlens.distill.threads`.
    paths, parts = [], list(batches(len(samples), shard))
    with single_threads(workers) as pool:
        for path, rows in zip(pool.map(make, range(len(parts)), parts), parts, strict=True):
            paths.append(path)
            if progress is not None:
                progress(rows.stop, len(samples))
    return paths


def read_reinforced(paths: Sequence[Path]) -> Reinforced:
    """Return the shards `paths` as one data set.

    Raises:
        DataError: a shard is missing or damaged.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {"images": [], "texts": [], "logprobs": [], "params": []}
    captions: list[str] = []
    for path in paths:
        try:
            with safe_open(path, "np") as shard:
                captions += json.loads(shard.metadata()["captions"])
                for name, arrays in parts.items():
                    arrays.append(shard.get_tensor(name))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                f"shard {path}",
                expected="a shard that `pocketlens distill reinforce` wrote",
                found=f"{type(error).__name__}: {error}",
                remedy="Delete the file and run `pocketlens distill reinforce` again; the other shards are kept.",
            ) from error
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Reinforced(
        images=joined["images"].astype(np.float16),
        texts=joined["texts"].astype(np.float16),
        captions=tuple(captions),
        logprobs=joined["logprobs"],
        params=joined["params"],
    )


def _ask(
    samples: Sequence[Sample],
    embedder: EmbeddingTeacher,
    captioner: CaptioningTeacher,
    embedder_pixels: NDArray[np.uint8],
    captioner_pixels: NDArray[np.uint8],
    params: NDArray[np.float32],
) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    images, texts, captions, logprobs = [], [], [], []
    for rows in batches(len(samples), _BATCH):
        views = [
            embedder.embed_images(augment.apply(embedder_pixels[rows], params[rows, view]))
            for view in range(params.shape[1])
        ]
        images.append(np.stack(views, axis=1))
        written = captioner.caption(captioner_pixels[rows])
        captions += [caption.text for caption in written]
        logprobs += [caption.logprob for caption in written]
        said = [
            text
            for sample, caption in zip(samples[rows], written, strict=True)
            for text in (*sample.captions, caption.text)
        ]
        texts.append(embedder.embed_texts(said).reshape(len(written), -1, embedder.dim))
    tensors: dict[str, NDArray[np.generic]] = {
        "images": np.concatenate(images).astype(np.float16),
        "texts": np.concatenate(texts).astype(np.float16),
        "logprobs": np.asarray(logprobs, dtype=np.float32),
        "params": params.astype(np.float32),
    }
    return tensors, captions
