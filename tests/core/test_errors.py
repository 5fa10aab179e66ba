import errno
import inspect
import pickle
import re
from pathlib import Path

import pytest

from pocketlens.core import errors
from pocketlens.core.errors import PictureError, PocketlensError, StorageFull, StoreError, storage_errors


def _tree() -> list[type[PocketlensError]]:
    return [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, PocketlensError)]


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = dict(re.findall(r"(\w+) +(\d+)   ", errors.__doc__ or ""))
    assert drawn == {error.__name__: str(error.exit_code) for error in _tree()}


def test_every_error_is_public() -> None:
    assert {error.__name__ for error in _tree()} <= set(errors.__all__)


def test_a_message_says_what_was_expected_found_and_to_be_done() -> None:
    error = PictureError("a.jpg", kind="empty", expected="a picture", found="0 bytes", remedy="Copy it again.")
    assert str(error) == "a.jpg: expected a picture; found 0 bytes. Copy it again."


@pytest.mark.parametrize("kind", _tree())
def test_errors_cross_processes(kind: type[PocketlensError]) -> None:
    extra = {"kind": "empty"} if kind is PictureError else {}
    error = kind("what", expected="e", found="f", remedy="r", **extra)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_fields_are_those_of_the_sentence_and_a_pictures_kind() -> None:
    said = {"what": "a", "expected": "b", "found": "c", "remedy": "d"}
    assert StoreError(**said).fields() == {"error": "StoreError", **said, "exit_code": 11}
    refused = PictureError(**said, kind="empty").fields()
    assert refused == {"error": "PictureError", **said, "exit_code": 3, "kind": "empty"}


def test_only_a_full_disk_becomes_storage_full(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="No space"), storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), storage_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
