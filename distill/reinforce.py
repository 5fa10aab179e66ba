"""Teachers run once: what they say about every picture, in shards that training reads.

A shard is one file, `shard-<number>-<key>.safetensors`, written whole or not at all; `pocketlens.distill.shards` says
what is in it. Its key hashes the teachers' weights, the pictures' bytes, the captions and the settings, so a run that
is repeated after a kill skips what is done and never takes an old shard for a new one. Under `torchrun` each process
makes every so many-th shard. Memory: one batch of pictures and one shard of answers, whatever the data set is.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import storage_errors
from pocketlens.core.picture_source import read_bytes
from pocketlens.distill import augment
from pocketlens.distill.data.sample import Sample, as_source
from pocketlens.distill.distributed import Place
from pocketlens.distill.pictures import PixelSource, batches
from pocketlens.distill.recipe import ReinforceRecipe
from pocketlens.distill.shards import pack_texts, pack_vectors, write_shard
from pocketlens.distill.teachers.teacher import CaptioningTeacher, EmbeddingTeacher, TeacherCaption
from pocketlens.distill.threads import single_threads

__all__ = ["reinforce"]

_BATCH: Final = 64


def reinforce(
    samples: Sequence[Sample],
    *,
    data: Path,
    embedder: EmbeddingTeacher,
    captioner: CaptioningTeacher,
    embedder_pixels: PixelSource,
    captioner_pixels: PixelSource,
    folder: Path,
    settings: ReinforceRecipe,
    seed: int,
    workers: int = 1,
    place: Place = Place(),  # noqa: B008 - a constant
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Ask the teachers about every sample and return all shards, finished ones reused.

    Args:
        samples: the pictures' captions.
        data: folder of the data set.
        embedder: the embedding teacher.
        captioner: the captioning teacher.
        embedder_pixels: `(N, H, W, 3)` uint8, preprocessed by the embedder's spec.
        captioner_pixels: likewise by the captioner's.
        folder: where shards go.
        settings: views, captions and what is kept of them.
        seed: of the augmentations.
        workers: shards that are made at once, each in a thread.
        place: which of several processes this is. Each names all shards and makes its own; the caller waits for the
            others.
        progress: called with (pictures of this process done, pictures of this process in all).

    Raises:
        StorageFull: the disk is full; finished shards are kept.
        PictureError: a picture cannot be read.
    """
    # What changes the answers is in the key; how many pictures make a shard shows in the samples.
    words = [[embedder.digest, captioner.digest], msgspec.to_builtins(settings), seed]
    base = hashlib.sha256(json.dumps(words).encode())
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def make(number: int, rows: slice) -> Path:
        mine = samples[rows]
        digest = base.copy()
        for sample in mine:
            digest.update(msgspec.json.encode(sample))
            digest.update((sample.sha256 or _file_digest(sample, data)).encode())
        path = folder / f"shard-{number:05d}-{digest.hexdigest()[:16]}.safetensors"
        if number % place.world == place.rank and not path.exists():
            write_shard(path, _ask(mine, rows, embedder, captioner, embedder_pixels, captioner_pixels, settings, seed))
        return path

    # Shards beside each other, not each operator split over threads: see `pocketlens.distill.threads`.
    paths, parts, done = [], list(batches(len(samples), settings.shard)), 0
    total = sum(part.stop - part.start for part in parts[place.rank :: place.world])
    with single_threads(workers) as pool:
        for number, path in enumerate(pool.map(make, range(len(parts)), parts)):
            paths.append(path)
            if number % place.world == place.rank:
                done += parts[number].stop - parts[number].start
                if progress is not None:
                    progress(done, total)
    return paths


def _file_digest(sample: Sample, data: Path) -> str:
    return hashlib.sha256(read_bytes(as_source(sample.picture(data)))).hexdigest()


def _ask(
    samples: Sequence[Sample],
    at: slice,
    embedder: EmbeddingTeacher,
    captioner: CaptioningTeacher,
    embedder_pixels: PixelSource,
    captioner_pixels: PixelSource,
    settings: ReinforceRecipe,
    seed: int,
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of the shard of `samples`, which are the rows `at` of the data set."""
    views = range(settings.views)
    params = np.stack(
        [
            [augment.parameters(seed, i, view, policy=settings.augment) for view in views]
            for i in range(at.start, at.stop)
        ]
    )
    images, texts, counts = [], list[NDArray[np.float32]](), list[int]()
    written: list[TeacherCaption] = []
    for rows in batches(len(samples), _BATCH):
        here = slice(at.start + rows.start, at.start + rows.stop)
        pixels = embedder_pixels[here]
        seen = [embedder.embed_images(augment.apply(pixels, params[rows, view])) for view in views]
        images.append(np.stack(seen, axis=1))
        answers = captioner.captions(captioner_pixels[here], count=settings.captions, top_k=settings.top_k)
        said = [
            (*sample.captions, *(one.text for one in own)) for sample, own in zip(samples[rows], answers, strict=True)
        ]
        texts.append(embedder.embed_texts([text for of_picture in said for text in of_picture]))
        counts += map(len, said)
        written += [one for own in answers for one in own]
    return {
        **pack_vectors("images", np.concatenate(images), int8=settings.store == "int8"),
        **pack_vectors("texts", np.concatenate(texts), int8=settings.store == "int8"),
        **pack_texts([one.text for one in written]),
        **dict(_alternatives(written, settings.top_k)),
        "params": params.astype(np.float32),
        "text_ends": np.cumsum(counts, dtype=np.int64),
        "written": np.full(len(samples), settings.captions, dtype=np.int32),
        "logprobs": np.asarray([one.logprob for one in written], dtype=np.float32),
    }


def _alternatives(written: Sequence[TeacherCaption], top_k: int) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield ids and likeliest tokens of all captions, padded to the longest."""
    if not top_k:
        return
    length = max(len(one.token_ids) for one in written)
    ids = np.full((len(written), length), -1, dtype=np.int32)
    top = np.zeros((len(written), length, top_k), dtype=np.int32)
    logprobs = np.zeros((len(written), length, top_k), dtype=np.float16)
    for row, one in enumerate(written):
        count = len(one.token_ids)
        ids[row, :count], top[row, :count], logprobs[row, :count] = one.token_ids, one.top_ids, one.top_logprobs
    yield from (("caption_ids", ids), ("top_ids", top), ("top_logprobs", logprobs))
