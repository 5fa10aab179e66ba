"""The parts of a `tokenizer.json` that decide about ids and texts; version 1.0 of that format."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from pocketlens.core.errors import BundleSchemaError, ExportError

__all__ = ["Added", "Bpe", "TokenizerJson", "WordPiece", "read_tokenizer_json", "steps_of", "unsupported"]


class Added(msgspec.Struct):
    """A token that is looked for in the text before anything else is done to it."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class Bpe(msgspec.Struct, tag_field="type", tag="BPE"):
    """Byte pair encoding."""

    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class WordPiece(msgspec.Struct, tag_field="type", tag="WordPiece"):
    """The longest tokens from the left."""

    vocab: dict[str, int]
    unk_token: str
    continuing_subword_prefix: str
    max_input_chars_per_word: int


class Unigram(msgspec.Struct, tag_field="type", tag="Unigram"):
    """SentencePiece's unigram model; no header implements it yet."""


class WordLevel(msgspec.Struct, tag_field="type", tag="WordLevel"):
    """Whole words; no header implements it."""


class TokenizerJson(msgspec.Struct):
    """The file. Normalizer, pre-tokenizer and decoder are objects with a `type`, possibly a sequence of such."""

    added_tokens: list[Added]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any] | None
    model: Bpe | WordPiece | Unigram | WordLevel
    version: Literal["1.0"] = "1.0"


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Return the file at `path`.

    Raises:
        BundleSchemaError: it is missing or no tokenizer.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=TokenizerJson)
    except (OSError, msgspec.MsgspecError) as error:
        raise BundleSchemaError(
            str(path),
            expected="a tokenizer in Hugging Face tokenizers format, version 1.0",
            found=str(error),
            remedy="Export the bundle again.",
        ) from error


def steps_of(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """Return a part of the file as a flat list; `members` names the list in a sequence."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [step for member in part[members] for step in steps_of(member, members)]


def unsupported(path: Path, expected: str, found: str) -> ExportError:
    """Return the error for a feature that the C header does not implement."""
    return ExportError(
        f"the device kit for {path}",
        expected=expected,
        found=found,
        remedy="Train the tokenizer with `pocketlens distill`, or export without the device kit.",
    )
