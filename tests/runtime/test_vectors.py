"""Sources of pictures, and files of vectors that survive kills, power cuts, full disks and changed folders."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketlens.core.errors import DataError, PictureError, StorageFull
from pocketlens.runtime import Lens, load
from pocketlens.runtime.results import ReadEmbedding
from pocketlens.runtime.vectors.items import Item, list_items, read_item
from pocketlens.runtime.vectors.sidecar import Entry, Header, Sidecar, read_entries
from pocketlens.runtime.vectors.writing import Embedding, VectorReport, embed_here, write_vectors

Write = Callable[..., VectorReport]


@pytest.fixture(scope="module")
def lens(bundle_path: Path) -> Lens:
    return load(bundle_path, threads=2)


@pytest.fixture
def header(lens: Lens) -> Header:
    return Header(model_version=lens.model_version, dim=lens.dim, precision=lens.precision)


@pytest.fixture
def write(lens: Lens, header: Header) -> Write:
    def write(source: Path, out: Path, embedding: Embedding | None = None, **changed: object) -> VectorReport:
        about = msgspec.structs.replace(header, **changed)
        return write_vectors(source, out, about, embedding or embed_here(lens))

    return write


def _sidecar(out: Path) -> Path:
    return out.with_name(f"{out.name}.files.jsonl")


def _entries(out: Path) -> list[Entry]:
    return [entry for entry, _ in read_entries(_sidecar(out))]


def _check(lens: Lens, source: Path, out: Path) -> None:
    """Check that each picture has one line, in order, and its row is its vector."""
    items = list(list_items(source))
    entries = _entries(out)
    assert [entry.file for entry in entries] == [item.name for item in items]
    rows = [entry.row for entry in entries if entry.row is not None]
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    assert rows == list(range(len(vectors)))
    for item, entry in zip(items, entries, strict=True):
        if entry.refused is not None:
            with pytest.raises(PictureError) as refusal:
                lens.embed_image(read_item(item, 2**20))
            assert refusal.value.kind == entry.refused
            continue
        expected = lens.embed_image(read_item(item, 2**20))
        np.testing.assert_allclose(vectors[entry.row], expected, atol=1e-6)


def test_a_folder_becomes_one_file_of_vectors(lens: Lens, folder: Path, tmp_path: Path, write: Write) -> None:
    (folder / "07a.jpg").write_bytes(b"no picture")
    (folder / "note.txt").write_text("not listed")
    out = tmp_path / "vectors.npy"
    done = write(folder, out)
    assert (done.rows, done.resumed) == (40, 0)
    assert [(entry.file, entry.refused) for entry in done.refused] == [("07a.jpg", "unknown_type")]
    assert "07a.jpg: expected a picture" in (done.refused[0].message or "")
    _check(lens, folder, out)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "vectors.npy",
        "vectors.npy.files.jsonl",
    ]
    first = json.loads(_sidecar(out).read_bytes().splitlines()[0])
    assert first["model_version"] == lens.model_version


def test_a_table_holds_the_same(lens: Lens, folder: Path, tmp_path: Path, write: Write) -> None:
    write(folder, tmp_path / "vectors.npy")
    write(folder, tmp_path / "vectors.parquet")
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["file"].to_pylist() == [entry.file for entry in _entries(tmp_path / "vectors.npy")]
    np.testing.assert_array_equal(np.stack(table["vector"].to_pylist()), np.load(tmp_path / "vectors.npy"))
    assert table.schema.metadata[b"model_version"].decode() == lens.model_version


def test_a_folder_without_pictures_gives_no_rows(tmp_path: Path, write: Write, lens: Lens) -> None:
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", tmp_path / "v.npy").rows == 0
    assert np.load(tmp_path / "v.npy").shape == (0, lens.dim)


def test_a_finished_file_is_left_as_it_is(folder: Path, tmp_path: Path, write: Write) -> None:
    out = tmp_path / "vectors.npy"
    write(folder, out)
    before = out.stat().st_mtime_ns
    again = write(folder, out)
    assert (again.rows, again.resumed) == (40, 40)
    assert out.stat().st_mtime_ns == before


class _Stop(Exception):
    pass


def _breaking(lens: Lens, after: int) -> Embedding:
    def embedding(items: Iterator[Item]) -> Generator[ReadEmbedding]:
        for number, result in enumerate(embed_here(lens)(items)):
            if number == after:
                raise _Stop
            yield result

    return embedding


@pytest.fixture
def commits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlens.runtime.vectors.writing._COMMIT_ROWS", 1)


@pytest.mark.usefixtures("commits_at_once")
def test_a_run_goes_on_where_the_one_before_ended(lens: Lens, folder: Path, tmp_path: Path, write: Write) -> None:
    out = tmp_path / "vectors.npy"
    for already in (0, 11, 22):
        with pytest.raises(_Stop):
            write(folder, out, _breaking(lens, 11))
        assert len(_entries(out)) == already + 11
        assert not out.exists()
    done = write(folder, out)
    assert (done.rows, done.resumed) == (40, 33)
    _check(lens, folder, out)


@pytest.mark.usefixtures("commits_at_once")
@pytest.mark.parametrize("cut", range(1, 400, 37))
def test_every_torn_end_is_cut_back_and_done_again(
    lens: Lens, folder: Path, tmp_path: Path, write: Write, cut: int
) -> None:
    out = tmp_path / "vectors.npy"
    with pytest.raises(_Stop):
        write(folder, out, _breaking(lens, 20))
    rows = out.with_name("vectors.npy.rows")
    torn = (_sidecar(out), rows)[cut % 2]
    os.truncate(torn, max(torn.stat().st_size - cut, 0))
    write(folder, out)
    _check(lens, folder, out)


@pytest.mark.usefixtures("commits_at_once")
def test_rows_that_a_power_cut_left_as_zeros_are_done_again(
    lens: Lens, folder: Path, tmp_path: Path, write: Write
) -> None:
    out = tmp_path / "vectors.npy"
    with pytest.raises(_Stop):
        write(folder, out, _breaking(lens, 20))
    with open(out.with_name("vectors.npy.rows"), "r+b") as file:
        file.seek(128 + 15 * 4 * lens.dim)
        file.write(bytes(5 * 4 * lens.dim))
    assert write(folder, out).resumed == 15
    _check(lens, folder, out)


_KILLED = """
    import os, sys, threading
    from pathlib import Path
    from pocketlens.runtime import load
    from pocketlens.runtime.vectors import writing
    from pocketlens.runtime.vectors.sidecar import Header
    writing._COMMIT_ROWS = 3
    bundle, source, out, after = sys.argv[1:]
    lens = load(bundle, threads=2)
    def embedding(items):
        for number, result in enumerate(writing.embed_here(lens, batch_size=2)(items)):
            if number == int(after):
                os.kill(os.getpid(), 9)
            yield result
    header = Header(model_version=lens.model_version, dim=lens.dim, precision=lens.precision)
    writing.write_vectors(source, Path(out), header, embedding)
"""


def test_a_killed_process_loses_and_doubles_nothing(
    lens: Lens, bundle_path: Path, folder: Path, tmp_path: Path, write: Write
) -> None:
    out = tmp_path / "vectors.npy"
    for after in (1, 8, 14):
        command = [sys.executable, "-c", textwrap.dedent(_KILLED), str(bundle_path), str(folder), str(out), str(after)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert 0 < len(_entries(out)) < 40
    done = write(folder, out)
    assert done.resumed > 0
    _check(lens, folder, out)


def test_a_full_disk_is_a_typed_error_and_the_next_run_goes_on(
    lens: Lens, folder: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlens.runtime.vectors.writing._COMMIT_ROWS", 2)
    out = tmp_path / "vectors.npy"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
        with pytest.raises(StorageFull):
            write(folder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    done = write(folder, out)
    assert done.resumed > 0
    _check(lens, folder, out)


@pytest.mark.usefixtures("commits_at_once")
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "01.png").write_bytes(b"other"),
        lambda folder: (folder / "01.png").unlink(),
        lambda folder: (folder / "00a.png").write_bytes(b"new"),
        lambda folder: os.utime(folder / "02.png", ns=(1, 1)),
    ],
)
def test_a_source_that_changed_is_a_typed_error(
    lens: Lens, folder: Path, tmp_path: Path, write: Write, change: Callable[[Path], object]
) -> None:
    out = tmp_path / "vectors.npy"
    with pytest.raises(_Stop):
        write(folder, out, _breaking(lens, 20))
    change(folder)
    with pytest.raises(DataError, match="as it was when its vector was written"):
        write(folder, out)


@pytest.mark.usefixtures("commits_at_once")
def test_pictures_that_come_behind_the_finished_ones_are_taken_along(
    lens: Lens, folder: Path, tmp_path: Path, write: Write, pictures: list[bytes]
) -> None:
    out = tmp_path / "vectors.npy"
    with pytest.raises(_Stop):
        write(folder, out, _breaking(lens, 20))
    (folder / "zz.png").write_bytes(pictures[0])
    assert write(folder, out).rows == 41
    _check(lens, folder, out)
    (folder / "zzz.png").write_bytes(pictures[0])
    with pytest.raises(DataError, match=r"zzz\.png is new"):
        write(folder, out)


def test_another_model_is_a_typed_error(folder: Path, tmp_path: Path, write: Write) -> None:
    write(folder, tmp_path / "v.npy")
    for changed in ({"model_version": "other"}, {"precision": "int4"}, {"max_pixels": 5}):
        with pytest.raises(DataError, match="vectors of model version"):
            write(folder, tmp_path / "v.npy", **changed)


def test_two_writers_do_not_meet(folder: Path, tmp_path: Path, write: Write, header: Header) -> None:
    out = tmp_path / "v.npy"
    with Sidecar(_sidecar(out), header), pytest.raises(DataError, match="another process"):
        write(folder, out)
    write(folder, out)


def test_a_foreign_file_is_not_overwritten(folder: Path, tmp_path: Path, write: Write) -> None:
    out = tmp_path / "v.npy"
    np.save(out, np.zeros(3))
    with pytest.raises(DataError, match="without one"):
        write(folder, out)
    assert len(np.load(out)) == 3
    with pytest.raises(DataError, match="ends in"):
        write(folder, tmp_path / "v.csv")


@pytest.mark.parametrize("line", [b"{}\n", b"[]\n", b"\x00\x00\n", b'{"file":1}\n'])
def test_a_damaged_sidecar_is_a_typed_error(folder: Path, tmp_path: Path, write: Write, line: bytes) -> None:
    out = tmp_path / "v.npy"
    write(folder, out)
    whole = _sidecar(out).read_bytes()
    _sidecar(out).write_bytes(whole + line)
    with pytest.raises(DataError, match="line 42"):
        write(folder, out)
    _sidecar(out).write_bytes(line + whole)
    with pytest.raises(DataError, match="first line"):
        write(folder, out)


def _tar(path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(pictures):
            for name, content in ((f"{number:04}.png", data), (f"{number:04}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _table(path: Path, pictures: list[bytes], *, nested: bool) -> None:
    values = [{"bytes": data, "path": None} for data in pictures] if nested else pictures
    table = pa.table({"key": [f"k{number}" for number in range(len(pictures))], "image": values})
    pq.write_table(table, path, row_group_size=7)


@pytest.mark.parametrize("kind", ["tar", "folder of tars", "parquet", "nested parquet"])
def test_tar_files_and_tables_are_sources_too(
    lens: Lens, pictures: list[bytes], tmp_path: Path, write: Write, kind: str
) -> None:
    source = tmp_path / ("source" + {"tar": ".tar", "folder of tars": ""}.get(kind, ".parquet"))
    if kind == "tar":
        _tar(source, pictures)
    elif kind == "folder of tars":
        source.mkdir()
        _tar(source / "a.tar", pictures[:25])
        _tar(source / "b.tar", pictures[25:])
    else:
        _table(source, pictures, nested=kind.startswith("nested"))
    items = list(list_items(source))
    assert [read_item(item, 2**20) for item in items] == pictures
    assert len({item.name for item in items}) == 40
    write(source, tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), list(lens.embed_images(pictures)), atol=1e-6)


def test_a_table_without_pictures_is_left_out_of_a_folder_and_refused_alone(
    folder: Path, tmp_path: Path, write: Write
) -> None:
    write(folder, folder / "vectors.parquet")
    assert write(folder, folder / "vectors.parquet").rows == 40
    with pytest.raises(DataError, match="columns"):
        list(list_items(folder / "vectors.parquet"))


def test_what_is_no_source_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for name in ("x.txt", "x.tar", "x.parquet", "missing"):
        with pytest.raises(DataError):
            list(list_items(tmp_path / name))


def test_links_are_not_followed_and_names_without_utf8_are_written_down(
    tmp_path: Path, pictures: list[bytes], write: Write
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    (root / "a.png").write_bytes(pictures[0])
    (root / "link.png").symlink_to(root / "a.png")
    (root / "loop").symlink_to(root)
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(pictures[1])
    write(root, tmp_path / "v.npy")
    assert [entry.file for entry in _entries(tmp_path / "v.npy")] == ["a.png", "\\xff.png"]
    assert write(root, tmp_path / "v.npy").resumed == 2


def test_a_picture_that_goes_away_meanwhile_is_refused(lens: Lens, folder: Path, tmp_path: Path, write: Write) -> None:
    def embedding(items: Iterator[Item]) -> Generator[ReadEmbedding]:
        listed = list(items)
        (folder / "01.png").unlink()
        yield from embed_here(lens)(iter(listed))

    done = write(folder, tmp_path / "v.npy", embedding)
    assert [(entry.file, entry.refused) for entry in done.refused] == [("01.png", "missing")]
