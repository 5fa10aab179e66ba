"""What every teacher folder has in common: an optional card, and one way to say that it is broken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pocketlens.core.errors import TeacherError
from pocketlens.core.tokenizer import SPECIAL_TOKENS

__all__ = ["TeacherCard", "captioner_tokenizer", "read_card", "teacher_errors"]


class TeacherCard(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """`teacher.json`, beside the weights: who the teacher is and under which licence it came."""

    id: str
    licence: str


def read_card(folder: Path) -> TeacherCard:
    """Return the card of `folder`; without one the folder's name and the licence `unknown`.

    Raises:
        TeacherError: there is no such folder, or the card is malformed.
    """
    if not folder.is_dir():
        raise TeacherError(
            f"teacher {folder}",
            expected="a folder that holds a teacher",
            found="a file" if folder.exists() else "nothing at that path",
            remedy="Check the path in the recipe, or download the teacher first.",
        )
    path = folder / "teacher.json"
    if not path.exists():
        return TeacherCard(id=folder.name, licence="unknown")
    with teacher_errors(folder, "a readable teacher.json"):
        return msgspec.json.decode(path.read_bytes(), type=TeacherCard)


def captioner_tokenizer(folder: Path) -> str:
    """Return the `tokenizer.json` of a captioner, fit for a student.

    Raises:
        TeacherError: there is none, or it lacks the special tokens that a student has.
    """
    path = folder / "tokenizer.json"
    with teacher_errors(folder, "a tokenizer.json"):
        content = path.read_text(encoding="utf-8")
        vocabulary = msgspec.json.decode(content, type=dict[str, Any])["model"]["vocab"]
    known = vocabulary if isinstance(vocabulary, dict) else {}
    missing = [token for index, token in enumerate(SPECIAL_TOKENS) if known.get(token) != index]
    if missing:
        raise TeacherError(
            f"teacher {folder}",
            expected=f"a tokenizer with {', '.join(SPECIAL_TOKENS)} as ids 0 to {len(SPECIAL_TOKENS) - 1}",
            found=f"another one: {', '.join(missing)} not there",
            remedy='Take student.tokenizer = "bpe" and leave train.losses.token at 0.',
        )
    return content


@contextmanager
def teacher_errors(folder: Path, expected: str) -> Iterator[None]:
    """Turn whatever a model library raises while it reads `folder` into `TeacherError`.

    The libraries raise nearly everything here (OSError, KeyError, RuntimeError, safetensors' and
    pickle's own), so the whole of `Exception` is translated; the cause stays attached.
    """
    try:
        yield
    except TeacherError:
        raise
    except Exception as error:
        raise TeacherError(
            f"teacher {folder}",
            expected=expected,
            found=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Check that the folder is complete and in the format that the recipe names.",
        ) from error
