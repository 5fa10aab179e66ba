"""From one model version to the next: always one version in an answer, at every step, through every kill."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from pocketlens.core.bundle import Manifest
from pocketlens.core.errors import StoreError
from pocketlens.runtime import Store, index_folder, load, upgrade_store
from pocketlens.runtime.store.nearest import index_folder_of
from tests.runtime.store_rows import DIM, opened, row, vectors

Rebuilt = Callable[[Callable[[Manifest], Manifest]], Path]
FILES = 24


def _fill_old(path: Path, files: int = FILES) -> None:
    path.parent.mkdir(exist_ok=True)
    with opened(path, "v1", exact_rows=10) as store:
        store.write([row(f"/p/{n}", vector, caption=f"v1 says {n}") for n, vector in enumerate(vectors(files))])
        store.prepare()


def _fill_new(path: Path, numbers: range) -> None:
    with opened(path, "v2", dim=8, shadow=True, exact_rows=10) as shadow:
        table = vectors(FILES, seed=1, dim=8)
        shadow.write([row(f"/p/{n}", table[n], caption=f"v2 says {n}") for n in numbers])
        shadow.prepare()


def _versions(store: Store) -> set[str]:
    """Return the versions of the captions in an answer by vector and in one by words."""
    query = vectors(1, seed=5, dim=store.dim)[0]
    hits = [*store.search(query, k=100), *store.search(words="says", k=100), *store.search(query, words="v1 v2", k=100)]
    return {(hit.caption or "").split()[0] for hit in hits}


def test_each_store_sees_its_own_version_before_during_and_after(tmp_path: Path) -> None:
    path = tmp_path / "s"
    _fill_old(path)
    with opened(path, "v1", exact_rows=10) as old:
        old.upgrade.begin(model_version="v2", dim=8)
        old.upgrade.begin(model_version="v2", dim=8)  # again: nothing happens
        _fill_new(path, range(10))
        assert _versions(old) == {"v1"}
        status = old.upgrade.status()
        assert (status.active, status.shadow, status.files, status.done) == ("v1", "v2", FILES, 10)
        assert [known.path for _, known in old.upgrade.missing(3)] == ["/p/10", "/p/11", "/p/12"]
        with pytest.raises(StoreError, match="14 files to do"):
            old.upgrade.switch()
        assert old.upgrade.switch_if_filled() is False
        _fill_new(path, range(10, FILES))
        old.upgrade.switch()
        assert _versions(old) == {"v1"}  # open before the switch: it goes on with its own
        assert len(old.search(vectors(1)[0], k=100)) == FILES
        with pytest.raises(StoreError, match="a switch to another one"):
            old.write([row("/p/new", vectors(1)[0])])
        with pytest.raises(StoreError, match="model version v1 with 16 dimensions; found v2 with 8"):
            opened(path, "v1")
        with opened(path, "v2", dim=8, exact_rows=10) as new:
            assert _versions(new) == {"v2"}
            assert new.stats().index_kind == "hnsw"  # it was built before the switch
            new.upgrade.finish()
        with pytest.raises(StoreError, match="its rows were removed"):
            old.search(vectors(1)[0])
    assert len(list(index_folder_of(path).glob("*.bin"))) == 1


def test_rolling_back_brings_the_old_answers_and_forward_again_works(tmp_path: Path) -> None:
    path = tmp_path / "s"
    _fill_old(path)
    with opened(path, "v1") as store:
        before = store.search(vectors(1)[0], k=5)
        store.upgrade.begin(model_version="v2", dim=8)
        _fill_new(path, range(FILES))
        store.upgrade.switch()
        store.upgrade.roll_back()
    with opened(path, "v1") as store:
        assert store.search(vectors(1)[0], k=5) == before
        store.upgrade.roll_back()
    with opened(path, "v2", dim=8) as store:
        assert _versions(store) == {"v2"}
        assert store.damages() == []


def test_a_second_upgrade_replaces_the_way_back_and_cancel_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "s"
    _fill_old(path)
    with opened(path, "v1") as store:
        with pytest.raises(StoreError, match="v1 as active"):
            store.upgrade.begin(model_version="v1", dim=DIM)
        store.upgrade.begin(model_version="v2", dim=8)
        with pytest.raises(StoreError, match="an upgrade to v2"):
            store.upgrade.begin(model_version="v3", dim=8)
        with pytest.raises(StoreError, match="no upgrade under way"):
            store.upgrade.roll_back()
        _fill_new(path, range(FILES))
        store.upgrade.switch()
    with opened(path, "v2", dim=8) as store:
        store.upgrade.begin(model_version="v3", dim=4)
        with opened(path, "v3", dim=4, shadow=True) as shadow:
            shadow.write([row("/p/1", vectors(1, dim=4)[0])])
        store.upgrade.cancel()
        status = store.upgrade.status()
        assert (status.active, status.shadow, status.previous) == ("v2", None, "v1")
        assert store.stats().rows == {"v1": FILES, "v2": FILES}


def test_changes_while_it_fills_are_done_too(tmp_path: Path) -> None:
    path = tmp_path / "s"
    _fill_old(path)
    with opened(path, "v1") as store:
        store.upgrade.begin(model_version="v2", dim=8)
        store.upgrade.skip([("", "/p/3")])
        _fill_new(path, range(FILES))
        store.write([row("/p/1", vectors(1)[0], content="edited"), row("/p/new", vectors(1)[0])], removed=["/p/2"])
        assert [known.path for _, known in store.upgrade.missing()] == ["/p/1", "/p/new"]
        with opened(path, "v2", dim=8, shadow=True) as shadow:
            # What was computed from the old bytes comes too late.
            assert shadow.write([row("/p/1", vectors(1, dim=8)[0])]).older == 1
            assert shadow.write([row("/p/2", vectors(1, dim=8)[0])]).older == 1
            assert shadow.write([row("/p/1", vectors(1, dim=8)[0], content="edited")]).added == 1
        assert store.search(vectors(1)[0], k=1)[0].album is None
        store.upgrade.skip([("", "/p/new")])
        assert store.upgrade.switch_if_filled() is True


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import apsw, faiss, onnxruntime
import usearch.index
import pocketlens.runtime.store.indexes as indexes
import pocketlens.runtime.store.upgrade as upgrade
from tests.runtime.store_rows import opened, row, vectors

FILES = 24
left = 0

def step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(connection):
    # Before a commit and at each statement that changes something.
    connection.set_commit_hook(lambda: step() or False)
    connection.set_update_hook(lambda *change: step())

def stepping(inner):
    def stepped(*a, **k):
        step()
        result = inner(*a, **k)
        step()
        return result
    return stepped

def run(path):
    apsw.connection_hooks.append(watch)
    for module, name in ((indexes, "write_rows"), (indexes, "write_index"), (upgrade, "drop_index")):
        setattr(module, name, stepping(getattr(module, name)))
    with opened(path, "v1", exact_rows=10) as store:
        store.upgrade.begin(model_version="v2", dim=8)
        table = vectors(FILES, seed=1, dim=8)
        while missing := store.upgrade.missing(8):
            with opened(path, "v2", dim=8, shadow=True, exact_rows=10) as shadow:
                numbers = [int(known.path[3:]) for _, known in missing]
                shadow.write([row(f"/p/{n}", table[n], caption=f"v2 says {n}") for n in numbers])
                shadow.prepare()
        store.upgrade.switch()
        store.upgrade.roll_back()
        store.upgrade.roll_back()
        store.upgrade.finish()

# A process for each run, born of one that has loaded everything: loading took most of the time.
for line in sys.stdin:
    number, _, path = line.rstrip("\\n").partition(" ")
    child = os.fork()
    if child == 0:
        left = int(number)
        try:
            run(Path(path))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def kill_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, int], bool]]:
    """Return what runs the upgrade of a store until its n-th step, and tells whether it was killed there."""
    log = tmp_path_factory.mktemp("killed") / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # A process with threads must not be forked.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        ) as process,
    ):

        def kill(path: Path, step: int) -> bool:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{step} {path}\n")
            process.stdin.flush()
            status = process.stdout.readline().strip()
            assert status in {"0", str(-signal.SIGKILL)}, log.read_text()
            return status != "0"

        yield kill
        assert process.stdin is not None
        process.stdin.close()


def _look(path: Path) -> str:
    """Return the version that answers, after looking that every answer is whole and of one version."""
    with Store.open(path, exact_rows=10) as store:
        assert store.damages() == []
        assert _versions(store) == {store.model_version}
        assert len(store.search(vectors(1, dim=store.dim)[0], k=100)) == FILES
        return store.model_version


# One in nine by default; all of them in the slow run.
@pytest.mark.parametrize("step", [1, 2, 9, 27, 30, 33, 80, 86, 90, 120])
def test_a_kill_at_a_step_of_an_upgrade_leaves_one_version_whole(
    tmp_path: Path, kill_at: Callable[[Path, int], bool], step: int
) -> None:
    _fill_old(tmp_path / "s")
    killed = kill_at(tmp_path / "s", step)
    version = _look(tmp_path / "s")
    if version == "v1" and killed:
        assert not kill_at(tmp_path / "s", 10**9)  # goes on where it was
        assert _look(tmp_path / "s") == "v2"


@pytest.mark.slow
def test_a_kill_at_every_step_of_an_upgrade_leaves_one_version_whole(
    tmp_path: Path, kill_at: Callable[[Path, int], bool]
) -> None:
    _fill_old(tmp_path / "filled" / "s")
    step, seen = 0, set()
    while True:
        step += 1
        shutil.copytree(tmp_path / "filled", tmp_path / "killed")
        killed = kill_at(tmp_path / "killed" / "s", step)
        seen.add(_look(tmp_path / "killed" / "s"))
        shutil.rmtree(tmp_path / "killed")
        if not killed:
            break
    assert step > 50
    assert seen == {"v1", "v2"}


def test_an_upgrade_by_a_second_bundle_answers_alike(
    bundle_path: Path, rebuilt: Rebuilt, folder: Path, tmp_path: Path
) -> None:
    lens = load(bundle_path, threads=1)
    path = tmp_path / "s"
    with Store.open(path, model_version=lens.model_version, dim=lens.dim) as store:
        index_folder(lens, store, folder, album="a")
        store.label([str(folder / "01.png")], visibility="hidden")
    newer = load(rebuilt(lambda m: msgspec.structs.replace(m, model_version="newer")), threads=1)
    (folder / "02.png").unlink()
    os.truncate(folder / "05.png", 10)
    answers = iter([False, False])
    stopped = upgrade_store(newer, path, batch_size=8, stop=lambda: next(answers, True))
    assert (stopped.active, stopped.shadow, stopped.done + stopped.skipped) == (lens.model_version, "newer", 16)
    seen: list[int] = []
    status = upgrade_store(newer, path, batch_size=8, progress=lambda at: seen.append(at.done))
    assert seen == [24, 32, 40]
    assert (status.active, status.previous) == ("newer", lens.model_version)
    with Store.open(path, model_version="newer", dim=newer.dim) as store:
        assert len(store) == 38
        hit = store.search(newer.embed_image(folder / "04.png"), k=1)[0]
        assert (hit.path, hit.album) == (str(folder / "04.png"), "a")
        assert str(folder / "01.png") not in {item.path for item in store.search(newer.embed_text("a"), k=100)}
        assert index_folder(newer, store, folder).unchanged == 38
    assert upgrade_store(newer, path).active == "newer"  # nothing left to do
