"""Writes scenes to a folder as pictures with captions, and reads them back.

::

    FOLDER/settings.json        what the pictures were made with
    FOLDER/{split}.jsonl        one `SceneSample` per line, written when all its pictures are there
    FOLDER/{split}/000001.jpg   JPEG, quality 92, 4:4:4
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from PIL import Image

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.scenes.caption import captions
from pocketlens.distill.scenes.grammar import Group, Scene, Split, sample_scene
from pocketlens.distill.scenes.render import render

__all__ = ["LOOK_VERSION", "SceneSample", "read_split", "write_dataset"]

LOOK_VERSION: Final = 1
"""Raised whenever the same seed gives another picture or caption."""

_CHUNK: Final = 32


class SceneSample(Sample, frozen=True, kw_only=True, omit_defaults=True):
    """One scene: five captions, the first the complete one, and all that the picture shows.

    Attributes:
        objects: the groups of objects that the picture shows.
        background: one of `grammar.BACKGROUNDS`.
        light: one of `grammar.LIGHTS`.
        seed: the scene's seed: `sample_scene(seed, split=...)` gives the scene back.
    """

    objects: tuple[Group, ...]
    background: str
    light: str
    seed: int


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    look: int
    seed: int
    size_px: dict[str, int]


class _Job(msgspec.Struct, frozen=True):
    folder: str
    split: Split
    seed: int
    size_px: int
    indices: tuple[int, ...]


def write_dataset(
    folder: Path,
    *,
    split_sizes: Mapping[Split, int],
    size_px: Mapping[Split, int],
    seed: int,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the pictures and captions of each split under `folder`.

    The result is the same, byte for byte, whatever `workers` is. Pictures that an earlier,
    interrupted call finished are kept. A later call may ask for more pictures.

    Args:
        folder: created if needed; must be empty or hold a data set of the same seed and sizes.
        split_sizes: how many pictures per split.
        size_px: the pictures' side per split, a multiple of 32.
        seed: of the whole data set.
        workers: processes; 1 renders in this one. More start by "spawn", so that a script which
            calls this needs the usual `if __name__ == "__main__"`.
        progress: called with (pictures done, pictures in all) now and then.

    Raises:
        DataError: the folder holds another data set or cannot be written.
        StorageFull: the disk is full; the pictures written before are kept.
    """
    sizes = {split: size_px[split] for split in split_sizes if split in size_px}
    if len(sizes) < len(split_sizes) or workers < 1 or min(split_sizes.values(), default=0) < 0:
        raise DataError(
            "data set request",
            expected="a size in pixels for each split, counts of 0 or more and at least one worker",
            found=f"split_sizes={dict(split_sizes)}, size_px={dict(size_px)}, workers={workers}",
            remedy="Correct the call.",
        )
    with _writing(folder):
        _claim(folder, seed, sizes)
        for split in split_sizes:
            (folder / split).mkdir(exist_ok=True)
    jobs = [
        _Job(str(folder), split, seed, sizes[split], indices)
        for split, count in split_sizes.items()
        for indices in (tuple(range(count)[i : i + _CHUNK]) for i in range(0, count, _CHUNK))
    ]
    total, done = sum(split_sizes.values()), 0
    lines: dict[Split, list[bytes]] = {split: [] for split in split_sizes}
    for job, written in zip(jobs, _run(jobs, workers), strict=True):
        lines[job.split] += written
        done += len(job.indices)
        if progress is not None:
            progress(done, total)
    for split, split_lines in lines.items():
        _write(folder / f"{split}.jsonl", b"".join(line + b"\n" for line in split_lines))


def read_split(folder: Path, split: Split) -> list[SceneSample]:
    """Return the samples of `split`, in the order of their ids.

    Raises:
        DataError: the list or one of its pictures is missing, or a line is malformed.
    """
    path = folder / f"{split}.jsonl"
    remedy = "Write the data set again; finished pictures are kept."
    try:
        lines = path.read_bytes().splitlines()
        present = {f"{split}/{name}" for name in os.listdir(folder / split)}
    except OSError as error:
        raise DataError(
            str(path), expected="a readable data set", found=error.strerror or str(error), remedy=remedy
        ) from error
    samples = []
    for number, line in enumerate(lines, start=1):
        try:
            sample = msgspec.json.decode(line, type=SceneSample)
        except msgspec.MsgspecError as error:
            raise DataError(
                f"{path}, line {number}", expected="one sample as JSON", found=str(error), remedy=remedy
            ) from error
        if sample.image not in present:
            raise DataError(
                f"{path}, line {number}",
                expected=f"a picture {sample.image} beside the list",
                found="no such file",
                remedy=remedy,
            )
        samples.append(sample)
    return samples


def _run(jobs: list[_Job], workers: int) -> Iterator[list[bytes]]:
    if workers == 1 or len(jobs) == 1:
        yield from map(_write_chunk, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(_write_chunk, jobs)


def _write_chunk(job: _Job) -> list[bytes]:
    """Write the pictures of `job` that are not there yet; return all its lines."""
    lines = []
    for index in job.indices:
        scene = sample_scene(_scene_seed(job.seed, job.split, index), split=job.split)
        name = f"{job.split}/{index:06d}"
        path = Path(job.folder, f"{name}.jpg")
        if not _complete(path):
            _write_picture(path, scene, job.size_px)
        lines.append(msgspec.json.encode(_sample(name, scene)))
    return lines


def _sample(name: str, scene: Scene) -> SceneSample:
    return SceneSample(
        id=name,
        image=f"{name}.jpg",
        captions=captions(scene),
        kinds=tuple(sorted({group.kind for group in scene.groups})),
        objects=scene.groups,
        background=scene.background,
        light=scene.light,
        seed=scene.seed,
    )


def _scene_seed(seed: int, split: Split, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()[:6], "big")


def _complete(path: Path) -> bool:
    """Tell whether `path` is a whole JPEG: it ends with the end-of-image marker."""
    try:
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read(2) == b"\xff\xd9"
    except OSError:
        return False


def _write_picture(path: Path, scene: Scene, size_px: int) -> None:
    part = path.with_suffix(".part")
    image = Image.fromarray(render(scene, size_px=size_px))
    with _writing(path):
        image.save(part, format="JPEG", quality=92, subsampling=0)
        part.replace(path)


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with _writing(path):
        part.write_bytes(content)
        part.replace(path)


def _claim(folder: Path, seed: int, size_px: Mapping[Split, int]) -> None:
    """Note in `folder` what its pictures are made with, or check that they are made so already."""
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _Settings(look=LOOK_VERSION, seed=seed, size_px={str(k): v for k, v in size_px.items()})
    if path.exists():
        try:
            there = msgspec.json.decode(path.read_bytes(), type=_Settings)
        except msgspec.MsgspecError as error:
            raise DataError(
                str(path),
                expected="the settings of a data set",
                found=str(error),
                remedy="Choose an empty folder.",
            ) from error
        merged = there.size_px | wanted.size_px
        clash = any(there.size_px[split] != merged[split] for split in there.size_px)
        if clash or (there.look, there.seed) != (wanted.look, wanted.seed):
            raise DataError(
                str(folder),
                expected=f"an empty folder or a data set of {wanted}",
                found=f"a data set of {there}",
                remedy="Choose another folder, or delete this one.",
            )
        wanted = msgspec.structs.replace(wanted, size_px=merged)
    elif any(folder.iterdir()):
        raise DataError(
            str(folder),
            expected="an empty folder or a data set",
            found="other files",
            remedy="Choose another folder.",
        )
    _write(path, msgspec.json.encode(wanted))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full disk into `StorageFull` and every other `OSError` into `DataError`."""
    try:
        with storage_errors(path):
            yield
    except OSError as error:
        raise DataError(
            f"writing {path}",
            expected="a folder that can be written",
            found=error.strerror or str(error),
            remedy="Choose another folder or change its permissions.",
        ) from error
