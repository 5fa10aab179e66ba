"""Text to ids and back, read from a bundle's own `tokenizer.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import BundleSchemaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as _Backend

__all__ = ["BOS", "EOS", "PAD", "SPECIAL_TOKENS", "UNK", "Tokenizer"]

PAD: Final = "<pad>"
BOS: Final = "<bos>"
EOS: Final = "<eos>"
UNK: Final = "<unk>"
SPECIAL_TOKENS: Final = (PAD, BOS, EOS, UNK)
"""The special tokens in id order: `<pad>` is 0, `<bos>` 1, `<eos>` 2, `<unk>` 3."""


class Tokenizer:
    """A byte-level BPE tokenizer with fixed-length output.

    Args:
        backend: a `tokenizers.Tokenizer` whose vocabulary holds `SPECIAL_TOKENS`.
        text_length: T, the length of the text encoder's input.
    """

    def __init__(self, backend: "_Backend", *, text_length: int) -> None:
        self._backend = backend
        self.text_length = text_length
        self.vocab_size: int = backend.get_vocab_size()
        self.pad_id = self._special(PAD)
        self.bos_id = self._special(BOS)
        self.eos_id = self._special(EOS)

    @classmethod
    def from_file(cls, path: Path, *, text_length: int) -> "Tokenizer":
        """Return the tokenizer saved at `path`.

        Raises:
            BundleSchemaError: the file is no tokenizer, or lacks a special token.
        """
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise BundleSchemaError(
                str(path),
                expected="a Hugging Face tokenizers JSON file",
                found=str(error),
                remedy="Export the bundle again.",
            ) from error
        return cls(backend, text_length=text_length)

    def to_json(self) -> str:
        """Return the tokenizer as `from_file` reads it."""
        text: str = self._backend.to_str()
        return text

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without special tokens; any string is representable."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Return `(B, T)` int32: `<bos>`, the ids, `<eos>`, then `<pad>`.

        A text that is longer than T - 2 ids keeps its first T - 2.
        """
        out = np.full((len(texts), self.text_length), self.pad_id, dtype=np.int32)
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for row, encoding in zip(out, encodings, strict=True):
            ids = encoding.ids[: self.text_length - 2]
            row[: len(ids) + 2] = [self.bos_id, *ids, self.eos_id]
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def _special(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None:
            raise BundleSchemaError(
                "tokenizer",
                expected=f"the special token {token} in the vocabulary",
                found="none",
                remedy="Train the tokenizer with `pocketlens distill`, which adds the special tokens.",
            )
        return int(index)
