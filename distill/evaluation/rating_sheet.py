"""A blind sheet for human raters: one HTML file, two captions a picture in an order that only the key knows.

::

    sheet.html   for the raters: pictures, captions, no name of any system; ratings stay in the browser until exported
    key.json     for whoever reads the ratings: which caption is whose

The order of the two captions and of the pictures is drawn with a secret of 32 bytes. The sheet holds a hash of the key
(SHA-256 over the secret and the order), so that nobody can change the key afterwards, and no rater can guess it.
"""

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.distill.data.sample import PictureFile
from pocketlens.distill.evaluation.pages import render, thumbnail

__all__ = ["RatingKey", "read_key", "write_sheet"]


class RatingKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which caption of the sheet is whose.

    Attributes:
        systems: the two names.
        secret: 64 hex digits.
        pairs: for each pair of the sheet, in its order: the picture's id, and which system wrote the left caption.
    """

    systems: tuple[str, str]
    secret: str
    pairs: tuple[tuple[str, int], ...]

    @property
    def seal(self) -> str:
        """The hash of this key that the sheet holds."""
        return hashlib.sha256(bytes.fromhex(self.secret) + msgspec.json.encode((self.systems, self.pairs))).hexdigest()


class _Pair(msgspec.Struct, frozen=True):
    picture: str
    left: str
    right: str


def write_sheet(
    folder: Path,
    pictures: Sequence[PictureFile],
    ids: Sequence[str],
    captions: tuple[Sequence[str], Sequence[str]],
    systems: tuple[str, str],
    *,
    pairs: int,
    secret: str = "",
) -> RatingKey:
    """Write `sheet.html` and `key.json` into `folder` and return the key.

    Pictures for which both systems wrote the same caption are left out: there is nothing to prefer.

    Args:
        folder: created if needed.
        pictures: N of them.
        ids: of the pictures.
        captions: of both systems, N each.
        systems: their names, in the same order.
        pairs: the most pairs, drawn at random.
        secret: 64 hex digits that decide every draw; by default new ones.

    Raises:
        DataError: both systems say the same about every picture, or a key is there already.
        PictureError: a picture cannot be read.
        StorageFull: no space left.
    """
    if (folder / "key.json").exists():
        raise DataError(
            str(folder / "key.json"),
            expected="a folder without a rating sheet",
            found="the key of an earlier sheet, without which its ratings cannot be read",
            remedy="Choose another folder.",
        )
    secret = secret or secrets.token_hex(32)
    rng = np.random.default_rng(int(secret, 16))
    rows = [int(row) for row in rng.permutation(len(ids)) if captions[0][row].strip() != captions[1][row].strip()]
    if not rows:
        raise DataError(
            "rating sheet",
            expected="two systems that differ in at least one caption",
            found=f"{systems[0]} and {systems[1]} with the same {len(ids)} captions",
            remedy="Compare other systems.",
        )
    order = [(row, int(rng.integers(2))) for row in rows[:pairs]]
    key = RatingKey(systems, secret, tuple((ids[row], left) for row, left in order))
    shown = [_Pair(thumbnail(pictures[row]), captions[left][row], captions[1 - left][row]) for row, left in order]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        page = render("rating_sheet.html.jinja", pairs=shown, seal=key.seal)
        (folder / "sheet.html").write_text(page, encoding="utf-8")
        descriptor = os.open(folder / "key.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(key), indent=2) + b"\n")
    return key


def read_key(path: Path) -> RatingKey:
    """Return the key at `path`.

    Raises:
        DataError: it is missing or malformed.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RatingKey)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(
            str(path), expected="the key of a rating sheet", found=str(error), remedy="Take the key.json of the sheet."
        ) from error
