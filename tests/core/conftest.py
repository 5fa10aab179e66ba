"""Bundles and archives that several test files install."""

from pathlib import Path

import pytest

from pocketlens.core.archive import pack_bundle
from tests.core.small_bundle import small_bundle


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return small_bundle(tmp_path_factory.mktemp("sealed") / "bundle", release=3)


@pytest.fixture(scope="module")
def packed(sealed: Path) -> bytes:
    return pack_bundle(sealed, sealed.with_name("packed.zip")).read_bytes()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder in which nothing may change but what a test asks for."""
    (tmp_path / "world" / "inner").mkdir(parents=True)
    (tmp_path / "world" / "precious.txt").write_text("mine")
    return tmp_path / "world"
