"""Lists of captions: CSV, TSV, JSONL and Parquet."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from pocketlens.core.errors import DataError
from pocketlens.distill.data.picture_place import open_place
from pocketlens.distill.data.recipe import CaptionsData
from pocketlens.distill.data.record import Broken, Found
from pocketlens.distill.data.sources.reading import joined, parsed

__all__ = ["read"]

_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_FIELD_LIMIT: Final = 2**24  # the csv module's own is 128 KiB, and one long caption would end the reading


def read(settings: CaptionsData, base: Path) -> Iterator[Found]:
    """Yield the records of all splits.

    Raises:
        DataError: a list or its pictures are missing, unreadable, or lack a column.
    """
    for split, files in settings.splits.items():
        path, broken = base / files.captions, list[Broken]()
        rows = _rows(path, settings, split, broken)
        yield from joined(rows, split, open_place(base / files.images))
        yield from broken


def _rows(path: Path, settings: CaptionsData, split: str, broken: list[Broken]) -> Iterator[tuple[str, list[Any]]]:
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            rows = _jsonl(path, settings, split, broken)
        case ".parquet":
            rows = _parquet(path, settings)
        case ".csv" | ".tsv" as suffix:
            rows = _table(path, settings, _DELIMITERS[suffix])
        case suffix:
            raise DataError(
                f"data source {path}",
                expected="a list of captions: .csv, .tsv, .jsonl or .parquet",
                found=f"a file that ends in {suffix!r}",
                remedy="Rename it to what it is, or convert it.",
            )
    for number, row in enumerate(rows, start=1):
        name, texts = row.get(settings.image_key), row.get(settings.captions_key)
        if not isinstance(name, str) or not name:
            detail = f"record {number} has no {settings.image_key!r}"
            broken.append(Broken(name=f"{path.name}:{number}", split=split, reason="malformed", detail=detail))
            continue
        yield name, texts if isinstance(texts, list) else [texts]


def _jsonl(path: Path, settings: CaptionsData, split: str, broken: list[Broken]) -> Iterator[dict[str, Any]]:
    with parsed(path, f"JSON lines in {settings.encoding}"), path.open(encoding=settings.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError as error:
                name = f"{path.name}:{number}"
                broken.append(Broken(name=name, split=split, reason="malformed", detail=str(error)))


def _table(path: Path, settings: CaptionsData, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_FIELD_LIMIT)
    expected = f"a table in {settings.encoding} with the columns {settings.image_key} and {settings.captions_key}"
    try:
        with parsed(path, expected), path.open(encoding=settings.encoding, newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            _check_columns(path, reader.fieldnames or [], settings)
            yield from reader
    except csv.Error as error:
        raise DataError(
            f"data source {path}", expected=expected, found=str(error), remedy="Correct the file."
        ) from error


def _parquet(path: Path, settings: CaptionsData) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise DataError(
            f"data source {path}",
            expected="the package pyarrow, which reads Parquet",
            found="it is not installed",
            remedy="pip install 'pocketlens[parquet]'",
        ) from error
    try:
        with parsed(path, "a Parquet file"), parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, settings)
            for batch in file.iter_batches(columns=[settings.image_key, settings.captions_key]):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise DataError(
            f"data source {path}", expected="a Parquet file", found=str(error)[:200], remedy="Write the file again."
        ) from error


def _check_columns(path: Path, columns: Sequence[str], settings: CaptionsData) -> None:
    missing = [key for key in (settings.image_key, settings.captions_key) if key not in columns]
    if missing:
        raise DataError(
            f"data source {path}",
            expected=f"a column {missing[0]}",
            found=f"the columns {', '.join(columns) or '(none)'}",
            remedy="Name the columns in the recipe: data.image_key and data.captions_key.",
        )
