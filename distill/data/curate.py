"""From what a source has to what is trained on: broken files, duplicates, leaks and captions that say nothing go.

::

    FOLDER/settings.json             the source, as the recipe says it
    FOLDER/fingerprints/*.npz        hashes of pictures, a chunk a file; a killed run goes on from there
    FOLDER/{split}.jsonl             one `Sample` a line
    FOLDER/dropped.jsonl             one `Dropped` a line: every record, picture and caption that was left out
    FOLDER/curation.json             a `Curation`: the same in numbers

Only the training split loses duplicates; a picture of another split that is also in `train` is a leak and goes from
`train`. Test and validation lose broken pictures alone, so that figures compare with published ones; their
duplicates are counted. Copies of one file in `train` become one sample with the captions of all.

Memory: about 100 bytes a record, whatever the pictures and captions are.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.distill.data.cleaning import clean, fault
from pocketlens.distill.data.duplicates import exact_groups, near_groups, similar_groups
from pocketlens.distill.data.hashing import Hashes, hash_pictures
from pocketlens.distill.data.ledger import Ledger
from pocketlens.distill.data.recipe import CurateRecipe, PicturesData
from pocketlens.distill.data.record import Broken, Record
from pocketlens.distill.data.sample import PictureFile, Sample, SampleList
from pocketlens.distill.data.sources import Foreign, read_source

__all__ = ["Curation", "Embed", "curate"]

Embed = Callable[[Sequence[PictureFile]], NDArray[np.float32]]
Splits = NDArray[np.str_]

_TRAIN: Final = "train"
_EMBED_CHUNK: Final = 256


class Curation(msgspec.Struct, frozen=True, kw_only=True):
    """What curation did, in numbers.

    Attributes:
        source: the data set's name.
        licence: its licence.
        records: records found, the broken ones among them.
        samples: samples kept, by split.
        captions: captions kept, by split.
        dropped: things left out, by reason.
        duplicates_kept: pictures of other splits than `train` that repeat, nearly or exactly, one of the same split.
    """

    source: str
    licence: str
    records: int
    samples: dict[str, int]
    captions: dict[str, int]
    dropped: dict[str, int]
    duplicates_kept: int


def curate(
    settings: Foreign,
    folder: Path,
    *,
    base: Path,
    workers: int = 2,
    embed: Embed | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curation:
    """Read the source, throw away what is no use, and write the splits into `folder`.

    Args:
        settings: the recipe's `[data]`.
        folder: of the data set; created if needed.
        base: what paths of the recipe are relative to.
        workers: processes that decode pictures.
        embed: pictures to embeddings `(N, D)` of unit norm, needed where `curate.near_cosine` is below 1.
        progress: called with (pictures hashed, pictures in all).

    Raises:
        DataError: the source cannot be read, the folder holds another data set, or too many records are broken;
            `dropped.jsonl` then says which.
        StorageFull: no space left; the hashes of finished chunks are kept.
    """
    with storage_errors(folder):
        _claim(folder, settings)
        with Ledger(folder / "dropped.jsonl") as ledger:
            records, unread = _ingest(settings, base, folder / "records.jsonl", ledger)
            hashes = hash_pictures(records, folder / "fingerprints", workers=workers, progress=progress)
            splits = np.array([record.split for record in records], dtype="U32")
            good = hashes.faults == ""
            for row in np.flatnonzero(~good).tolist():
                ledger.drop(records[row].name, splits[row], str(hashes.faults[row]), str(hashes.details[row]))
            found = len(records) + unread
            _check_broken(settings, found, found - int(good.sum()), ledger)
            splits = _held_out(settings, records, splits, good)
            groups = _groups(settings.curate, records, hashes, good, embed)
            kept, merged, duplicates_kept = _deduplicated(records, splits, hashes, good, groups, ledger)
            samples, captions = _write(settings, folder, records, splits, hashes, kept, merged, ledger)
        report = Curation(
            source=settings.name,
            licence=settings.licence,
            records=found,
            samples=samples,
            captions=captions,
            dropped=dict(sorted(ledger.reasons.items())),
            duplicates_kept=duplicates_kept,
        )
        (folder / "curation.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def _claim(folder: Path, settings: Foreign) -> None:
    """Note in `folder` which source it is for, or check that it is this one."""
    path, wanted = (
        folder / "settings.json",
        msgspec.json.encode({"source": type(settings).__name__, "name": settings.name}),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() != wanted:
        raise DataError(
            f"data set {folder}",
            expected=f"an empty folder or one of the data set {settings.name}",
            found=path.read_text(encoding="utf-8", errors="replace")[:200],
            remedy="Choose another folder, or delete this one.",
        )
    path.write_bytes(wanted)


def _ingest(settings: Foreign, base: Path, path: Path, ledger: Ledger) -> tuple[SampleList[Record], int]:
    """Write the source's records to `path`; return them and the number of broken ones."""
    broken, seen = 0, set[int]()
    with path.open("wb") as file:
        for found in read_source(settings, base):
            key = hash((found.split, found.name))
            if isinstance(found, Broken):
                broken += 1
                ledger.drop(found.name, found.split, found.reason, found.detail)
            elif key in seen:
                broken += 1
                ledger.drop(found.name, found.split, "malformed", "a second record of this name")
            else:
                seen.add(key)
                file.write(msgspec.json.encode(found) + b"\n")
    return SampleList(path, Record), broken


def _check_broken(settings: Foreign, records: int, broken: int, ledger: Ledger) -> None:
    if records and broken <= settings.curate.max_broken * records and broken < records:
        return
    raise DataError(
        f"data set {settings.name}",
        expected=f"records, at most {settings.curate.max_broken:.0%} of them broken",
        found=f"{records} records, {broken} of them broken: {ledger.summary()}",
        remedy=f"Look at {ledger.path}; correct the paths in the recipe or the files.",
    )


def _held_out(settings: Foreign, records: Sequence[Record], splits: Splits, good: NDArray[np.bool_]) -> Splits:
    """Return the splits with `settings.test` and `settings.val` good pictures of `train` moved where none were."""
    rows = np.flatnonzero(good & (splits == _TRAIN))
    rows = rows[np.argsort([hashlib.sha256(records[row].name.encode()).digest() for row in rows.tolist()])]
    splits = splits.copy()
    for split, count in (("test", settings.test), ("val", settings.val)):
        if not count or (splits == split).any():
            continue
        if count >= len(rows):
            raise DataError(
                f"data set {settings.name}",
                expected=f"more than {count} pictures in train, of which {split} is taken",
                found=f"{len(rows)}",
                remedy=f"Lower data.{split} in the recipe.",
            )
        splits[rows[:count]], rows = split, rows[count:]
    return splits


def _groups(
    settings: CurateRecipe,
    records: Sequence[Record],
    hashes: Hashes,
    good: NDArray[np.bool_],
    embed: Embed | None,
) -> NDArray[np.int64]:
    """Return for each row the head of its group of equal and nearly equal pictures, `(N,)`."""
    rows = np.flatnonzero(good)
    heads = np.arange(len(records))
    found = exact_groups(hashes.digests[rows])
    if settings.near_distance >= 0:
        found = near_groups(hashes.looks[rows], distance=settings.near_distance)
    if settings.near_cosine < 1.0:
        if embed is None:
            raise ValueError("embed: needed where curate.near_cosine is below 1")
        pictures = [records[row].picture() for row in rows.tolist()]
        chunks = [embed(pictures[i : i + _EMBED_CHUNK]) for i in range(0, len(pictures), _EMBED_CHUNK)]
        similar = similar_groups(np.concatenate(chunks).astype(np.float16), cosine=settings.near_cosine)
        found = np.minimum(found[similar], similar[found])
    heads[rows] = rows[found]
    return heads


def _deduplicated(
    records: Sequence[Record],
    splits: Splits,
    hashes: Hashes,
    good: NDArray[np.bool_],
    groups: NDArray[np.int64],
    ledger: Ledger,
) -> tuple[list[int], dict[int, list[int]], int]:
    """Return the rows to keep, for each the rows whose captions it gets, and how many duplicates other splits keep."""
    outside = {int(g): row for row, g in enumerate(groups.tolist()) if good[row] and splits[row] != _TRAIN}
    first: dict[tuple[str, int], int] = {}
    kept, merged, duplicates_kept = [], dict[int, list[int]](), 0
    for row in np.flatnonzero(good).tolist():
        split, group = str(splits[row]), int(groups[row])
        before = first.setdefault((split, group), row)
        if split != _TRAIN:
            duplicates_kept += before != row
            kept.append(row)
        elif group in outside:
            other = outside[group]
            ledger.drop(records[row].name, split, "leak", f"{splits[other]}: {records[other].name}")
        elif before == row:
            kept.append(row)
        elif (hashes.digests[before] == hashes.digests[row]).all():
            merged.setdefault(before, []).append(row)
            ledger.drop(records[row].name, split, "duplicate", records[before].name)
        else:
            ledger.drop(records[row].name, split, "near_duplicate", records[before].name)
    return kept, merged, duplicates_kept


def _write(
    settings: Foreign,
    folder: Path,
    records: Sequence[Record],
    splits: Splits,
    hashes: Hashes,
    kept: Sequence[int],
    merged: dict[int, list[int]],
    ledger: Ledger,
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the splits; return how many samples and captions each has."""

    def captions(row: int) -> list[str]:
        raw = [text for one in (row, *merged.get(row, ())) for text in records[one].captions]
        return list(dict.fromkeys(clean(text) for text in raw))

    repeated = _repeated(map(captions, kept), settings.curate.max_repeats)
    bare_stays = isinstance(settings, PicturesData) or settings.curate.uncaptioned == "keep"
    names = sorted({*map(str, splits), _TRAIN, "val", "test"})
    partials = {split: (folder / f"{split}.jsonl.partial").open("wb") for split in names}
    samples, texts = Counter[str](), Counter[str]()
    try:
        for row in kept:
            record, split, good = records[row], str(splits[row]), list[str]()
            for text in captions(row):
                reason = fault(text, settings.curate) or ("repeated" if _hash(text) in repeated else None)
                if reason is None:
                    good.append(text)
                else:
                    ledger.drop(record.name, split, reason, text[:80])
            if not good and not bare_stays:
                ledger.drop(record.name, split, "no_caption")
                continue
            sample = Sample(
                id=f"{split}/{record.name}",
                image=str(Path(record.path).absolute()),
                span=record.span,
                captions=tuple(good),
                source=settings.name,
                licence=settings.licence,
                sha256=hashes.digests[row].tobytes().hex(),
            )
            partials[split].write(msgspec.json.encode(sample) + b"\n")
            samples[split] += 1
            texts[split] += len(good)
    finally:
        for file in partials.values():
            file.close()
    for split in names:
        (folder / f"{split}.jsonl.partial").rename(folder / f"{split}.jsonl")
    return {split: samples[split] for split in names}, {split: texts[split] for split in names}


def _repeated(captions: Iterable[list[str]], limit: int) -> frozenset[int]:
    """Return the hashes of captions that more than `limit` pictures have."""
    if not limit:
        return frozenset()
    hashes = np.fromiter((_hash(text) for texts in captions for text in set(texts)), dtype=np.int64)
    values, counts = np.unique(hashes, return_counts=True)
    return frozenset(values[counts > limit].tolist())


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
