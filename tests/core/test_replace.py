"""One folder takes another one's place in a step, also where the file system cannot exchange names."""

import errno
import os
from pathlib import Path

import pytest

from pocketlens.core import replace
from pocketlens.core.archive import install_archive, pack_bundle
from pocketlens.core.bundle import load_bundle
from pocketlens.core.replace import exchange, recover, replace_folder
from tests.core.small_bundle import small_bundle


def _folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_two_folders_are_exchanged(tmp_path: Path) -> None:
    old, new = _folder(tmp_path / "a", "old"), _folder(tmp_path / "b", "new")
    assert exchange(new, old)
    assert ((old / "file").read_text(), (new / "file").read_text()) == ("new", "old")


def test_a_name_that_does_not_exist_cannot_be_exchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        exchange(_folder(tmp_path / "a", "x"), tmp_path / "none")


@pytest.mark.parametrize("can", [True, False])
@pytest.mark.parametrize("stood", [True, False])
def test_the_staged_folder_takes_the_place(
    can: bool, stood: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can:
        monkeypatch.setattr(replace, "exchange", lambda *_: False)
    if stood:
        _folder(tmp_path / "root", "old")
    replace_folder(_folder(tmp_path / "staged", "new"), tmp_path / "root")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert (tmp_path / "root" / "file").read_text() == "new"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EACCES])
def test_only_a_missing_ability_falls_back(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, *_: object, **__: object) -> None: ...

        def renameat2(self, *_: object) -> int:
            replace.ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(replace.ctypes, "CDLL", Library)
    one, other = _folder(tmp_path / "a", "1"), _folder(tmp_path / "b", "2")
    if number == errno.EACCES:
        with pytest.raises(PermissionError):
            exchange(one, other)
    else:
        assert not exchange(one, other)


def test_a_kill_between_two_renames_is_mended_by_the_next_installation(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    archive = pack_bundle(small_bundle(tmp_path / "new", release=2), tmp_path / "new.zip")
    small_bundle(target, release=1)
    os.rename(target, tmp_path / ".bundle.retired")  # where the file system cannot exchange, a kill leaves this
    recover(target)
    assert load_bundle(target).manifest.release == 1
    os.rename(target, tmp_path / ".bundle.retired")
    install_archive(archive, target)
    assert load_bundle(target).manifest.release == 2
    assert not (tmp_path / ".bundle.retired").exists()
