"""An older release than was installed is refused, also after the bundle is gone."""

import shutil
from pathlib import Path

import pytest

from pocketlens.core.archive import install_archive, pack_bundle
from pocketlens.core.bundle import load_bundle
from pocketlens.core.errors import BundleError
from tests.core.small_bundle import small_bundle


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("releases")
    return {n: pack_bundle(small_bundle(folder / f"{n}", release=n), folder / f"{n}.zip") for n in (0, 1, 2, 3)}


def test_releases_go_upwards(archives: dict[int, Path], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for release in (0, 1, 1, 3):
        install_archive(archives[release], target)
    for older in (0, 1, 2):
        with pytest.raises(BundleError, match=f"release 3 of test or a later one; found release {older}"):
            install_archive(archives[older], target)
    assert load_bundle(target).manifest.release == 3


@pytest.mark.parametrize("what", ["removed", "damaged"])
def test_the_number_outlives_the_bundle(what: str, archives: dict[int, Path], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    install_archive(archives[2], target)
    if what == "removed":
        shutil.rmtree(target)
    else:
        (target / "tokenizer.json").write_text("[]")
    with pytest.raises(BundleError, match="release 2"):
        install_archive(archives[1], target)
    assert install_archive(archives[2], target).manifest.release == 2


def test_a_bundle_that_was_copied_there_counts_too(archives: dict[int, Path], tmp_path: Path) -> None:
    small_bundle(tmp_path / "bundle", release=2)
    with pytest.raises(BundleError, match="release 2"):
        install_archive(archives[1], tmp_path / "bundle")


def test_a_rollback_is_possible_when_it_is_wanted(archives: dict[int, Path], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    install_archive(archives[3], target)
    assert install_archive(archives[1], target, allow_rollback=True).manifest.release == 1
    assert install_archive(archives[2], target).manifest.release == 2


def test_another_model_is_no_release_of_this_one(archives: dict[int, Path], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    install_archive(archives[1], target)
    other = pack_bundle(small_bundle(tmp_path / "other", release=9, name="other"), tmp_path / "other.zip")
    with pytest.raises(BundleError, match="the model other"):
        install_archive(other, target)
    assert install_archive(other, target, allow_rollback=True).manifest.name == "other"


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"name":"test","release":-1}', b'{"name":"test","release":1,"x":1}', b"\xff"]
)
def test_a_record_that_cannot_be_read_is_not_skipped(data: bytes, archives: dict[int, Path], tmp_path: Path) -> None:
    (tmp_path / ".bundle.installed").write_bytes(data)
    with pytest.raises(BundleError, match="record"):
        install_archive(archives[1], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
