"""Deletion: what is gone, what is proved, what a receipt says, and what a kill in between costs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import numpy as np
import pytest

from pocketlens.core.errors import StoreError
from pocketlens.runtime import Filter
from pocketlens.runtime.store import Dtype, Refused, Row
from pocketlens.runtime.store.encoding import encode
from pocketlens.runtime.store.erasure import residue_patterns
from pocketlens.runtime.store.nearest import index_folder_of
from tests.runtime.store_rows import DIM, opened, row, vectors


def _bytes_beside(path: Path) -> bytes:
    """Return every byte of every file in the store's folder."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.rglob("*")) if file.is_file())


def _patterns(item: Row, dtype: Dtype) -> list[bytes]:
    (blob,) = encode(item.vector[None], dtype)
    word = (item.caption or "").split()[0].encode()
    others = [form for kind in ("fp32", "fp16", "int8") for form in encode(item.vector[None], kind)]  # type: ignore[list-item]
    return [*residue_patterns(blob, item.caption), word, *(form[4:20] for form in others)]


def _rows(count: int, **columns: object) -> list[Row]:
    return [
        row(
            f"/p/{n}.jpg",
            vector,
            caption=f"unword{n}x lies in the grass, much longer than a cell {'z' * (n % 7)}",
            **columns,
        )
        for n, vector in enumerate(vectors(count))
    ]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "binary"])
def test_no_byte_of_an_erased_file_is_left(tmp_path: Path, dtype: Dtype) -> None:
    rows = _rows(200)
    with opened(tmp_path / "s", dtype=dtype) as store:
        store.write(rows[:100])
        store.write(rows[100:])
        before = _bytes_beside(store.path)
        for number in (0, 50, 99, 150, 199):
            patterns = _patterns(rows[number], dtype)
            assert patterns[0] in before  # the proof can fail
            receipt = store.erase(file=f"/p/{number}.jpg")
            assert (receipt.scope, receipt.files, receipt.rows, receipt.residues) == ("file", 1, 1, 0)
            assert receipt.patterns == 4
            assert receipt.bytes_searched > 0
            after = _bytes_beside(store.path)
            assert [pattern for pattern in patterns if pattern in after] == []
        assert len(store) == 195
        assert store.damages() == []
        assert store.stats().erasures == 5
        found = {hit.path for hit in store.search(rows[50].vector, k=195)}
        assert "/p/50.jpg" not in found


def test_an_index_forgets_too_and_is_built_again(tmp_path: Path) -> None:
    rows = _rows(800)
    with opened(tmp_path / "s", exact_rows=500) as store:
        store.write(rows)
        store.prepare()
        (kept,) = index_folder_of(store.path).glob("*.bin")
        old = kept.name
        receipt = store.erase(file="/p/7.jpg")
        assert receipt.residues == 0
        (built,) = index_folder_of(store.path).glob("*.bin")
        assert built.name != old
        assert store.stats().index_rows == 799
        assert store.search(rows[8].vector, k=1)[0].path == "/p/8.jpg"
        store.erase(file="/p/8.jpg", rebuild=False)
        assert not index_folder_of(store.path).exists()
        assert store.search(rows[9].vector, k=1)[0].path == "/p/9.jpg"


def test_an_album_and_a_tenant_go_whole_and_nothing_else(tmp_path: Path) -> None:
    first = _rows(100, album="summer")
    second = [
        row(f"/q/{n}", vector, caption=f"otherword{n}y stays here") for n, vector in enumerate(vectors(20, seed=3))
    ]
    third = [
        row(f"/r/{n}", vector, tenant="bob", caption=f"bobword{n}z") for n, vector in enumerate(vectors(90, seed=4))
    ]
    with opened(tmp_path / "s") as store:
        store.write([*first, *second, *third])
        store.write(refused=[Refused(path="/secret.jpg", kind="corrupt", message="why")], tenant="bob")
        album = store.erase(album="summer")
        assert (album.scope, album.files, album.rows, album.rewritten) == ("album", 100, 100, True)
        everything = _bytes_beside(store.path)
        assert not any(item.vector.tobytes()[:16] in everything for item in first)
        assert all(item.vector.tobytes() in everything for item in (*second, *third))
        tenant = store.erase(tenant="bob")
        assert (tenant.files, tenant.residues) == (90, 0)
        everything = _bytes_beside(store.path)
        assert not any(item.vector.tobytes()[:16] in everything for item in third)
        assert b"bobword" not in everything
        assert b"secret.jpg" not in everything
        assert store.search(third[0].vector, filter=Filter(tenant="bob")) == []
        assert len(store) == 20
        assert store.damages() == []


def test_a_row_of_another_picture_with_the_same_caption_is_no_residue(tmp_path: Path) -> None:
    table = vectors(3)
    with opened(tmp_path / "s") as store:
        store.write([row(f"/{n}", vector, caption="the very same words") for n, vector in enumerate(table)])
        assert store.erase(file="/0").residues == 0
        assert len(store.search(words="same words")) == 2


def test_nothing_to_erase_gives_a_receipt_too(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        assert store.erase(file="/none").files == 0
        assert store.erase(tenant="nobody").files == 0
        for wrong in ({}, {"file": "/a", "album": "b"}):
            with pytest.raises(ValueError, match="erase: expected"):
                store.erase(**wrong)  # type: ignore[arg-type]


def test_rows_of_a_previous_model_are_erased_as_well(tmp_path: Path) -> None:
    old, new = vectors(1)[0], vectors(1, seed=8)[0]
    with opened(tmp_path / "s") as store:
        store.write([row("/a", old, caption="oldword here")])
        store.upgrade.begin(model_version="v2", dim=DIM)
        with opened(tmp_path / "s", "v2", shadow=True) as shadow:
            shadow.write([row("/a", new, caption="newword here")])
        store.upgrade.switch()
    with opened(tmp_path / "s", "v2") as store:
        assert store.erase(file="/a").rows == 2
        everything = _bytes_beside(store.path)
        assert not any(vector.tobytes()[:16] in everything for vector in (old, new))
        assert b"oldword" not in everything
        assert b"newword" not in everything


def test_a_reader_of_the_old_state_is_told_of_and_compact_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlens.runtime.store.erasure._BUSY_TRIES", 2)
    monkeypatch.setattr("pocketlens.runtime.store.database._BUSY_MS", 10)
    rows = _rows(20)
    with opened(tmp_path / "s") as store:
        store.write(rows)
        reader = apsw.Connection(str(tmp_path / "s"))
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM entries").get == 20
        with pytest.raises(StoreError, match="holds on to the state before the erasure"):
            store.erase(file="/p/3.jpg")
        assert "/p/3.jpg" not in {hit.path for hit in store.search(rows[3].vector, k=20)}
        reader.close()
        store.compact()
        everything = _bytes_beside(store.path)
        assert not any(pattern in everything for pattern in _patterns(rows[3], "fp32"))


KILLED = """
import os, signal, sys
from pocketlens.runtime import Store
import pocketlens.runtime.store.erasure as erasure

def die(*ignored, **more):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(erasure, sys.argv[2], die)
with Store.open(sys.argv[1]) as store:
    store.erase(file="/p/3.jpg")
"""


@pytest.mark.parametrize("step", ["delete_files", "drop_index", "_empty_log", "residues"])
def test_an_erasure_that_was_killed_is_finished_later(tmp_path: Path, step: str) -> None:
    rows = _rows(60)
    path = tmp_path / "s"
    with opened(path) as store:
        store.write(rows)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), step], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    with opened(path) as store:
        there = len(store) == 60
        assert there == (step == "delete_files")  # before the commit nothing has happened
        store.compact()
        assert store.damages() == []
        everything = _bytes_beside(path)
        left = [pattern for pattern in _patterns(rows[3], "fp32") if pattern in everything]
        assert bool(left) == there
        assert np.isfinite(store.search(rows[5].vector, k=1)[0].score)
