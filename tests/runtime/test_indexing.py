"""A folder into a store: what is looked at, what is kept, what a kill costs."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketlens.core.bundle import Manifest
from pocketlens.core.captions import Caption
from pocketlens.core.errors import PictureError, StorageFull, StoreError
from pocketlens.core.events import EmbeddingServed, Event
from pocketlens.runtime import IndexProgress, Lens, Store, index_folder, load

Rebuilt = Callable[[Callable[[Manifest], Manifest]], Path]


class Counter:
    """A sink that counts the pictures that went through the encoder."""

    def __init__(self) -> None:
        self.encoded = 0

    def emit(self, event: Event) -> None:
        if isinstance(event, EmbeddingServed):
            self.encoded += event.batch_size


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def lens(bundle_path: Path, counter: Counter) -> Lens:
    return load(bundle_path, threads=1, sink=counter)


@pytest.fixture
def store(lens: Lens, tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db", model_version=lens.model_version, dim=lens.dim) as opened:
        yield opened


def _content(store: Store, lens: Lens) -> list[tuple[object, ...]]:
    """Return everything that a search shows, sorted by path."""
    hits = store.search(lens.embed_text("a"), k=1000)
    return sorted((hit.path, round(hit.score, 5), hit.caption, round(hit.confidence or 0, 5)) for hit in hits)


def test_every_picture_is_indexed_with_the_answers_of_the_lens(lens: Lens, store: Store, folder: Path) -> None:
    report = index_folder(lens, store, folder, batch_size=7)
    assert (report.added, report.unchanged, report.removed, report.refused) == (40, 0, 0, ())
    path = folder / "below" / "03.PNG"
    both = lens.describe(path)
    best = store.search(both.embedding, k=1)[0]
    assert best.path == str(path)
    assert best.score == pytest.approx(1, abs=1e-5)
    assert best.caption == both.caption.text
    assert best.confidence == pytest.approx(both.caption.confidence, abs=1e-5)


def test_a_second_run_encodes_nothing(lens: Lens, store: Store, folder: Path, counter: Counter) -> None:
    index_folder(lens, store, folder)
    assert counter.encoded == 40
    report = index_folder(lens, store, folder)
    assert (report.added, report.unchanged) == (0, 40)
    assert counter.encoded == 40


def test_a_new_time_alone_does_not_encode_again(lens: Lens, store: Store, folder: Path, counter: Counter) -> None:
    index_folder(lens, store, folder)
    os.utime(folder / "01.png", ns=(1, 1))
    report = index_folder(lens, store, folder)
    assert (report.added, report.unchanged) == (0, 40)
    assert counter.encoded == 40
    assert store.known(folder)[str(folder / "01.png")].mtime_ns == 1


def test_changed_new_and_deleted_files_are_noticed(lens: Lens, store: Store, folder: Path, counter: Counter) -> None:
    index_folder(lens, store, folder)
    shutil.copyfile(folder / "01.png", folder / "02.png")
    shutil.copyfile(folder / "04.png", folder / "new.png")
    (folder / "05.png").unlink()
    report = index_folder(lens, store, folder)
    assert (report.added, report.unchanged, report.removed, report.copied) == (2, 38, 1, 2)
    assert counter.encoded == 40  # the bytes of both were known
    paths = {path for path, *_ in _content(store, lens)}
    assert str(folder / "new.png") in paths
    assert str(folder / "05.png") not in paths


def test_bad_files_are_listed_and_stop_nobody(lens: Lens, store: Store, folder: Path, pictures: list[bytes]) -> None:
    (folder / "00-text.jpg").write_text("no picture")
    (folder / "20-empty.png").write_bytes(b"")
    (folder / "99-cut.png").write_bytes(pictures[0][:-200])
    report = index_folder(lens, store, folder, batch_size=5)
    assert report.added == 40
    assert [(Path(item.path).name, item.kind) for item in report.refused] == [
        ("00-text.jpg", "unknown_type"),
        ("20-empty.png", "empty"),
        ("99-cut.png", "corrupt"),
    ]
    assert all(item.message.startswith(item.path) for item in report.refused)
    assert store.refused() == list(report.refused)


def test_a_file_that_was_mended_is_no_longer_refused(
    lens: Lens, store: Store, folder: Path, pictures: list[bytes]
) -> None:
    (folder / "bad.png").write_bytes(b"")
    index_folder(lens, store, folder)
    (folder / "bad.png").write_bytes(pictures[0])
    report = index_folder(lens, store, folder)
    assert (report.added, report.refused) == (1, ())
    assert store.refused() == []


def test_a_refused_file_that_is_gone_is_forgotten(lens: Lens, store: Store, folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"")
    index_folder(lens, store, folder)
    (folder / "bad.png").unlink()
    index_folder(lens, store, folder)
    assert store.refused() == []


def test_a_picture_that_went_bad_leaves_the_search(lens: Lens, store: Store, folder: Path) -> None:
    index_folder(lens, store, folder)
    (folder / "01.png").write_bytes(b"broken now")
    report = index_folder(lens, store, folder)
    assert [item.path for item in report.refused] == [str(folder / "01.png")]
    assert str(folder / "01.png") not in {path for path, *_ in _content(store, lens)}


def test_links_and_other_files_are_not_looked_at(
    lens: Lens, store: Store, folder: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(pictures[0])
    (folder / "link").symlink_to(outside, target_is_directory=True)
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "notes.txt").write_text("notes")
    (folder / "folder.png").mkdir()
    report = index_folder(lens, store, folder)
    assert (report.added, report.refused) == (40, ())


def test_two_folders_live_side_by_side(
    lens: Lens, store: Store, folder: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    other = tmp_path / "pictures2"
    other.mkdir()
    (other / "a.png").write_bytes(pictures[0])
    index_folder(lens, store, folder)
    report = index_folder(lens, store, other)
    assert (report.added, report.removed) == (1, 0)
    assert len(store) == 41


def test_progress_grows_to_the_total(lens: Lens, store: Store, folder: Path) -> None:
    seen: list[IndexProgress] = []
    index_folder(lens, store, folder, batch_size=16, progress=seen.append)
    assert [(step.done, step.total) for step in seen] == [(0, 40), (16, 40), (32, 40), (40, 40)]


def test_what_lies_in_an_unreadable_folder_stays(
    lens: Lens, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_folder(lens, store, folder)
    scandir, closed = os.scandir, str(folder / "below")

    def forbidding(path: str) -> object:
        if path == closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    report = index_folder(lens, store, folder)
    assert [(item.path, item.kind) for item in report.refused] == [(closed, "unreadable")]
    assert report.removed == 0
    assert len(store) == 40
    assert store.refused() == list(report.refused)


def test_a_folder_that_is_none_is_refused(lens: Lens, store: Store, folder: Path) -> None:
    for path, kind in ((folder / "none", "missing"), (folder / "01.png", "not_a_file")):
        with pytest.raises(PictureError) as caught:
            index_folder(lens, store, path)
        assert caught.value.kind == kind


def test_a_store_for_another_model_is_refused(lens: Lens, folder: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db", model_version="other", dim=lens.dim) as store:
        with pytest.raises(StoreError, match="found one for other"):
            index_folder(lens, store, folder)
        assert len(store) == 0


def test_a_bundle_without_captions_indexes_vectors(rebuilt: Rebuilt, folder: Path, tmp_path: Path) -> None:
    lens = load(rebuilt(lambda m: msgspec.structs.replace(m, tasks=("embed",), caption=None)))
    with Store.open(tmp_path / "plain.db", model_version=lens.model_version, dim=lens.dim) as store:
        assert index_folder(lens, store, folder).added == 40
        best = store.search(lens.embed_image(folder / "01.png"), k=1)[0]
        assert (best.path, best.caption) == (str(folder / "01.png"), None)


def test_the_fallback_sees_the_files_of_an_index_too(
    bundle_path: Path, store: Store, folder: Path, pictures: list[bytes]
) -> None:
    asked: list[bytes] = []

    def fallback(picture: bytes, device_caption: Caption) -> Caption:
        asked.append(picture)
        return msgspec.structs.replace(device_caption, text="better")

    lens = load(bundle_path, fallback=fallback)
    index_folder(lens, store, folder)
    assert sorted(asked) == sorted(pictures)
    assert store.search(np.asarray(lens.embed_text("a")), k=1)[0].caption == "better"


def test_a_full_disk_keeps_the_batches_before(
    lens: Lens, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = store.write, []

    def full_at_the_third(*rows: object, **changes: object) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise StorageFull("store", expected="space", found="none", remedy="Free some.")
        write(*rows, **changes)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full_at_the_third)
        with pytest.raises(StorageFull):
            index_folder(lens, store, folder, batch_size=8)
    assert len(store) == 16
    report = index_folder(lens, store, folder, batch_size=8)
    assert (report.added, report.unchanged) == (24, 16)


KILLED = """
import os, signal, sys
import apsw
from pocketlens.core.events import EmbeddingServed
from pocketlens.runtime import Store, index_folder, load

bundle, file, folder, moment = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Sink:
    batches = 0
    def emit(self, event):
        self.batches += isinstance(event, EmbeddingServed)
        if moment == "while encoding the third batch" and self.batches == 3:
            die()

commits, connections = [], []

def commit():
    commits.append(1)
    if len(commits) == 3:  # the third batch is written but not committed
        die()
    return False

apsw.connection_hooks.append(connections.append)
lens = load(bundle, threads=1, sink=Sink())
store = Store.open(file, model_version=lens.model_version, dim=lens.dim)
if moment == "before the third commit":
    connections[0].set_commit_hook(commit)
index_folder(lens, store, folder, batch_size=8, progress=lambda step: print(step.done, flush=True))
"""


@pytest.mark.parametrize("moment", ["while encoding the third batch", "before the third commit"])
def test_a_kill_loses_no_acknowledged_picture_and_the_next_run_completes(
    lens: Lens, bundle_path: Path, folder: Path, tmp_path: Path, moment: str
) -> None:
    file = tmp_path / "killed.db"
    command = [sys.executable, "-c", KILLED, str(bundle_path), str(file), str(folder), moment]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    acknowledged = int(killed.stdout.split()[-1])
    assert acknowledged == 16
    with Store.open(file, model_version=lens.model_version, dim=lens.dim) as store:
        store.check()
        assert len(store) == acknowledged
        report = index_folder(lens, store, folder, batch_size=8)
        assert (report.added, report.unchanged) == (40 - acknowledged, acknowledged)
        continued = _content(store, lens)
    with Store.open(tmp_path / "whole.db", model_version=lens.model_version, dim=lens.dim) as store:
        index_folder(lens, store, folder, batch_size=8)
        assert continued == _content(store, lens)
