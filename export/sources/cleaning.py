"""What libraries do to a text before their tokenizer, as steps that `tokenizer.json` can carry.

open_clip runs ftfy and two rounds of HTML unescaping first. Those are Python programs; what of them a device can do
is here: curled quotes and ligatures are replaced, and characters composed (NFC). docs/direct-export.md says what
is left out.
"""

import string
from typing import Any, Final, Literal, get_args

__all__ = ["Clean", "cleaning_steps"]

Clean = Literal["none", "lower", "whitespace", "canonicalize", "siglip"]
"""`lower`, `whitespace` and `canonicalize` are open_clip's names; `siglip` is what SigLIP's tokenizer does itself."""

_Step = dict[str, Any]

# Python's str.split() and \s also break at U+001C to U+001F, the tokenizers' \s does not.
_BLANKS: Final = r"[\s\x1c-\x1f]+"

# ftfy 6.3, documentation of `remove_control_chars`.
_CONTROLS: Final = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
# ftfy 6.3, documentation of `uncurl_quotes` and `fix_latin_ligatures`; U+FB05 is "long s, t" there as well.
_QUOTES: Final = (("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'))
_LIGATURES: Final = {
    "\u0132": "IJ",
    "\u0133": "ij",
    "\u0149": "\u02bcn",
    "\u01f1": "DZ",
    "\u01f2": "Dz",
    "\u01f3": "dz",
    "\u01c4": "D\u017d",
    "\u01c5": "D\u017e",
    "\u01c6": "d\u017e",
    "\u01c7": "LJ",
    "\u01c8": "Lj",
    "\u01c9": "lj",
    "\u01ca": "NJ",
    "\u01cb": "Nj",
    "\u01cc": "nj",
    "\ufb00": "ff",
    "\ufb01": "fi",
    "\ufb02": "fl",
    "\ufb03": "ffi",
    "\ufb04": "ffl",
    "\ufb05": "\u017ft",
    "\ufb06": "st",
}


def cleaning_steps(clean: Clean) -> list[_Step]:
    """Return normalizers, first to last, as `tokenizer.json` writes them.

    Raises:
        ValueError: no such cleaning; whoever reads a model's configuration says so in its own words.
    """
    if clean not in get_args(Clean):
        raise ValueError(f"clean: expected one of {get_args(Clean)}, found {clean!r}")
    if clean == "none":
        return []
    if clean == "siglip":
        return [{"type": "Lowercase"}, _replace(_punctuation(), ""), _replace(_BLANKS, " "), _strip()]
    steps = [_replace(letter, text) for letter, text in _LIGATURES.items()]
    steps += [_replace(pattern, text) for pattern, text in _QUOTES]
    steps += [_replace(_CONTROLS, ""), {"type": "NFC"}]
    if clean == "canonicalize":
        steps += [_replace("_", " "), _replace(_punctuation(), "")]
    if clean in ("lower", "canonicalize"):
        steps.append({"type": "Lowercase"})
    return [*steps, _replace(_BLANKS, " "), _strip()]


def _replace(pattern: str, text: str) -> _Step:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": text}


def _strip() -> _Step:
    return {"type": "Strip", "strip_left": True, "strip_right": True}


def _punctuation() -> str:
    return "[" + "".join(f"\\x{ord(letter):02x}" for letter in string.punctuation) + "]"
