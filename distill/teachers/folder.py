"""What every teacher folder has in common: an optional card, and one way to say that it is broken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pocketlens.core.errors import TeacherError
from pocketlens.core.tokenizer import SPECIAL_TOKENS
from pocketlens.distill.teachers.weights import builtin_folder

__all__ = ["TeacherCard", "captioner_tokenizer", "card_of", "read_card", "teacher_errors"]

UNKNOWN_LICENCE = "unknown"


class TeacherCard(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """`teacher.json` (or `towers.json`), beside the weights: who the teacher is, under which licence it came."""

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
    for path in (folder / "teacher.json", folder / "towers.json"):
        if path.exists():
            with teacher_errors(folder, f"a readable {path.name}"):
                return msgspec.json.decode(path.read_bytes(), type=TeacherCard)
    return TeacherCard(id=folder.resolve().name, licence=UNKNOWN_LICENCE)


def card_of(name: str) -> TeacherCard:
    """Return the card of a teacher that is a folder or a name on a hub; a name has the licence `unknown`.

    Raises:
        TeacherError: the folder's card is malformed, or a path leads nowhere.
    """
    path = Path(name)
    looks_like_path = path.is_absolute() or name.startswith((".", "~"))
    return read_card(path) if path.exists() or looks_like_path else TeacherCard(id=name, licence=UNKNOWN_LICENCE)


def captioner_tokenizer(name: str) -> str:
    """Return the `tokenizer.json` of the captioner in the folder `name`, or of `builtin`, fit for a student.

    Raises:
        TeacherError: there is none, or it lacks the special tokens that a student has.
    """
    folder = builtin_folder("captioner") if name == "builtin" else Path(name.removeprefix("hf:"))
    path = folder / "tokenizer.json"
    with teacher_errors(folder, "a tokenizer.json in a local folder"):
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
def teacher_errors(folder: Path | str, expected: str) -> Iterator[None]:
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
            remedy="Check that the folder is complete and in the format that the recipe names; without a network only "
            "folders and what lies in the library's cache can be opened.",
        ) from error
