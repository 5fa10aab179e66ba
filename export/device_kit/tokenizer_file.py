"""`tokenizer.json` in a flat form that C reads in place: `tokenizer.bin`, format version 1.

All numbers are uint32, little-endian. With V ids, M merges, S special tokens and B bytes of tokens:

::

    0       "PLTK"
    4       1, the format version
    8       flags: 1 NFC, 2 lower case (after NFC), 4 a space before, 8 split into words (GPT-2's pattern)
    12      V
    16      M
    20      S
    24      B
    28      text_length
    32      pad id, bos id, eos id
    44      0, up to byte 64
    64      id of each byte          256
            start of each token      V + 1, in the bytes at the end; the last is B
            ids of special tokens    S
            first merge of each left id   V + 1; the last is M
            right id, rank, new id   3 M, sorted by left id, then right id
            bytes of all tokens      B, raw (not in the byte-level alphabet)

The file ends there. Merges are looked up by left id, then by a binary search for the right one.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from tokenizers import pre_tokenizers

from pocketlens.core.bundle import TokenizerSpec
from pocketlens.core.errors import BundleSchemaError, ExportError

__all__ = ["tokenizer_bin"]

_MAGIC: Final = b"PLTK"
_VERSION: Final = 1
_HEADER_BYTES: Final = 64
_NFC, _LOWER, _PREFIX_SPACE, _WORDS = 1, 2, 4, 8


class _Added(msgspec.Struct):
    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _Normalizer(msgspec.Struct):
    type: str
    normalizers: "list[_Normalizer]" = []


class _PreTokenizer(msgspec.Struct):
    type: str
    add_prefix_space: bool = True
    use_regex: bool = True


class _Decoder(msgspec.Struct):
    type: str


class _Bpe(msgspec.Struct):
    type: str
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class _File(msgspec.Struct):
    """The parts of a tokenizers JSON file that decide about ids; version 1.0 of that format."""

    added_tokens: list[_Added]
    normalizer: _Normalizer | None
    pre_tokenizer: _PreTokenizer | None
    decoder: _Decoder | None
    model: _Bpe
    version: Literal["1.0"] = "1.0"


def tokenizer_bin(path: Path, spec: TokenizerSpec) -> bytes:
    """Return the bytes of `tokenizer.bin` for the `tokenizer.json` at `path`.

    Raises:
        BundleSchemaError: the file is missing or no tokenizer.
        ExportError: a tokenizer that the C header does not implement; the message names the feature.
    """
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError) as error:
        raise BundleSchemaError(
            str(path),
            expected="a byte-level BPE in Hugging Face tokenizers format, version 1.0",
            found=str(error),
            remedy="Export the bundle again.",
        ) from error
    model = file.model
    _check_model(path, model)
    tokens = _tokens(path, file)
    byte_ids = _byte_ids(path, model.vocab)
    groups, merges = _merges(path, model, len(tokens))
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token))
    special = sorted(token.id for token in file.added_tokens)
    header = (
        _VERSION,
        _flags(path, file),
        len(tokens),
        len(merges) // 3,
        len(special),
        starts[-1],
        spec.text_length,
        spec.pad_id,
        spec.bos_id,
        spec.eos_id,
    )
    body = _pack(byte_ids) + _pack(starts) + _pack(special) + _pack(groups) + _pack(merges)
    return (_MAGIC + _pack(header)).ljust(_HEADER_BYTES, b"\0") + body + b"".join(tokens)


def _pack(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _flags(path: Path, file: _File) -> int:
    normalizer = file.normalizer
    steps = [normalizer] if normalizer is not None else []
    if normalizer is not None and normalizer.type == "Sequence":
        steps = normalizer.normalizers
    names = [step.type for step in steps]
    if names not in ([], ["NFC"], ["Lowercase"], ["NFC", "Lowercase"]):
        raise _unsupported(path, "a normalizer of NFC, then Lowercase", f"{', '.join(names)}")
    words = file.pre_tokenizer
    if words is None or words.type != "ByteLevel":
        raise _unsupported(path, "the ByteLevel pre-tokenizer", "none" if words is None else words.type)
    if file.decoder is None or file.decoder.type != "ByteLevel":
        raise _unsupported(path, "the ByteLevel decoder", "none" if file.decoder is None else file.decoder.type)
    flags = (_NFC if "NFC" in names else 0) | (_LOWER if "Lowercase" in names else 0)
    return flags | (_PREFIX_SPACE if words.add_prefix_space else 0) | (_WORDS if words.use_regex else 0)


def _check_model(path: Path, model: _Bpe) -> None:
    if model.type != "BPE":
        raise _unsupported(path, "a BPE model", model.type)
    for feature in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        value = getattr(model, feature)
        if value:
            raise _unsupported(path, f"no {feature}", repr(value))


def _tokens(path: Path, file: _File) -> list[bytes]:
    """Return the bytes of every id; those of an id without a token are empty."""
    for added in file.added_tokens:
        plain = added.special and not (added.normalized or added.single_word or added.lstrip or added.rstrip)
        if not plain or not added.content:
            raise _unsupported(path, "added tokens that are special and matched as they are", repr(added.content))
    alphabet = _byte_alphabet()
    texts = {id_: token for token, id_ in file.model.vocab.items()}
    texts |= {added.id: added.content for added in file.added_tokens}
    special = {added.id for added in file.added_tokens}
    tokens = [b""] * (max(texts) + 1)
    for id_, text in texts.items():
        # As in the library's decoder: a token with a letter outside of the byte alphabet stands for itself.
        is_bytes = id_ not in special and all(letter in alphabet for letter in text)
        tokens[id_] = bytes(alphabet[letter] for letter in text) if is_bytes else text.encode()
    return tokens


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for (Radford et al. 2019, GPT-2).

    Printable bytes stand for themselves, the others for U+0100 and up, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    if set(alphabet) != set(pre_tokenizers.ByteLevel.alphabet()):
        raise ExportError(
            "the byte-level alphabet",
            expected="that of GPT-2",
            found="another one in the installed tokenizers library",
            remedy="Use the tokenizers version that constraints.txt names.",
        )
    return alphabet


def _byte_ids(path: Path, vocab: Mapping[str, int]) -> list[int]:
    letters = {byte: letter for letter, byte in _byte_alphabet().items()}
    missing = [byte for byte in range(256) if letters[byte] not in vocab]
    if missing:
        raise _unsupported(path, "all 256 bytes in the vocabulary", f"{len(missing)} missing, the first {missing[0]}")
    return [vocab[letters[byte]] for byte in range(256)]


def _merges(path: Path, model: _Bpe, vocab_size: int) -> tuple[list[int], list[int]]:
    """Return where the merges of each left id start, and (right, rank, new) for all, flat."""
    table: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(model.merges):
        left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
        try:
            # A pair that is listed twice counts where it is listed last, as in the library.
            table[model.vocab[left], model.vocab[right]] = (rank, model.vocab[left + right])
        except KeyError as error:
            raise BundleSchemaError(
                str(path),
                expected="merges of tokens that the vocabulary holds",
                found=f"{merge!r} at line {rank + 1} of the merges",
                remedy="Export the bundle again.",
            ) from error
    groups = [0] * (vocab_size + 1)
    for left_id, _ in table:
        groups[left_id + 1] += 1
    for id_ in range(vocab_size):
        groups[id_ + 1] += groups[id_]
    return groups, [n for pair in sorted(table) for n in (pair[1], *table[pair])]


def _unsupported(path: Path, expected: str, found: str) -> ExportError:
    return ExportError(
        f"the device kit for {path}",
        expected=expected,
        found=found,
        remedy="Train the tokenizer with `pocketlens distill`, or export without the device kit.",
    )
