"""`tokenizer.json` in a flat form that C reads in place: `tokenizer.bin`, format version 2.

All numbers are uint32, little-endian. With V ids, E entries, S special tokens, N words of steps and B bytes of tokens:

::

    0       "PLTK"
    4       2, the format version
    8       model: 0 byte-level BPE, 1 the same with marked word ends, 2 WordPiece
    12      words: 0 none, 1 GPT-2's pattern, 2 CLIP's, 3 CLIP's with its names, 4 what blanks part
    16      flags: 1 a space before, 2 decoding makes a space of "</w>"
    20      V
    24      E: merges, or tokens of WordPiece
    28      S
    32      B
    36      text_length
    40      pad id, bos id, eos id
    52      id of unknown words (WordPiece)
    56      N
    60      most letters of a word (WordPiece)
    64      0, up to byte 80
    80      steps                    N, see pocketlens_normalizer.h
            id of each byte          256; with marked word ends 256 more, for the last byte of a word; WordPiece: none
            start of each token      V + 1, in the bytes at the end; the last is B
            ids of special tokens    S
    BPE:    first merge of each left id   V + 1; the last is E
            right id, rank, new id   3 E, sorted by left id, then right id
    WordPiece:  ids of tokens        E, sorted by their bytes
            joints                   V bytes, and up to a multiple of 4: what decoding puts before a token that is
                                     not the first: 0 a space, 1 nothing and takes "##" off, 2 nothing
            bytes of all tokens      B, raw (not in the byte-level alphabet)

The file ends there. Merges are looked up by left id, then by a binary search for the right one.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tokenizers import decoders, pre_tokenizers

from pocketlens.core.bundle import TokenizerSpec
from pocketlens.core.errors import BundleSchemaError, ExportError
from pocketlens.export.device_kit.normalizer_steps import normalizer_words, punctuation_words
from pocketlens.export.device_kit.tokenizer_json import (
    Bpe,
    TokenizerJson,
    WordPiece,
    read_tokenizer_json,
    steps_of,
    unsupported,
)

__all__ = ["tokenizer_bin"]

_MAGIC: Final = b"PLTK"
_VERSION: Final = 2
_HEADER_BYTES: Final = 80
_BPE, _BPE_WORD_ENDS, _WORDPIECE = 0, 1, 2
_NONE, _GPT2, _CLIP, _CLIP_NAMES, _SPACES = range(5)
_PREFIX_SPACE, _END_MARKS = 1, 2
_SPACE, _CONTINUED, _CLOSE = 0, 1, 2
_END: Final = "</w>"
_CONTINUING: Final = "##"
_MOST_LETTERS: Final = 2**20

# CLIP's pattern as open_clip and as transformers write it; a class of one is the same as its member.
_CLIP_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_NAMED: Final = r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP_WORDS


class _Parts(NamedTuple):
    """What a model puts into the file."""

    model: int
    words: int
    flags: int
    steps: Sequence[int]
    byte_ids: Sequence[int] = ()
    groups: Sequence[int] = ()
    entries: Sequence[int] = ()
    entry_count: int = 0
    joints: bytes = b""
    unknown_id: int = 0
    most_letters: int = 0


def tokenizer_bin(path: Path, spec: TokenizerSpec) -> bytes:
    """Return the bytes of `tokenizer.bin` for the `tokenizer.json` at `path`.

    Raises:
        BundleSchemaError: the file is missing or no tokenizer.
        ExportError: a tokenizer that the C header does not implement; the message names the feature.
    """
    file = read_tokenizer_json(path)
    tokens = _tokens(path, file)
    if isinstance(file.model, Bpe):
        parts = _bpe(path, file, file.model, len(tokens))
    elif isinstance(file.model, WordPiece):
        parts = _wordpiece(path, file, file.model, tokens)
    else:
        raise unsupported(path, "a BPE or WordPiece model", type(file.model).__name__)
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token))
    special = sorted(token.id for token in file.added_tokens)
    header = (
        _VERSION,
        parts.model,
        parts.words,
        parts.flags,
        len(tokens),
        parts.entry_count,
        len(special),
        starts[-1],
        spec.text_length,
        spec.pad_id,
        spec.bos_id,
        spec.eos_id,
        parts.unknown_id,
        len(parts.steps),
        parts.most_letters,
    )
    numbers = (parts.steps, parts.byte_ids, starts, special, parts.groups, parts.entries)
    joints = parts.joints.ljust(-(-len(parts.joints) // 4) * 4, b"\0")
    body = b"".join(map(_pack, numbers)) + joints + b"".join(tokens)
    return (_MAGIC + _pack(header)).ljust(_HEADER_BYTES, b"\0") + body


def _pack(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _bpe(path: Path, file: TokenizerJson, model: Bpe, vocab_size: int) -> _Parts:
    for feature in ("dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges"):
        value = getattr(model, feature)
        if value:
            raise unsupported(path, f"no {feature}", repr(value))
    suffix = model.end_of_word_suffix or ""
    if suffix not in ("", _END):
        raise unsupported(path, f"word ends marked by {_END}", suffix)
    byte_ids = _byte_ids(path, model.vocab, ("", suffix) if suffix else ("",))
    groups, entries = _merges(path, model, vocab_size)
    words, flags = _bpe_words(path, steps_of(file.pre_tokenizer, "pretokenizers"))
    return _Parts(
        _BPE_WORD_ENDS if suffix else _BPE,
        words,
        flags | _bpe_decoding(path, steps_of(file.decoder, "decoders")),
        normalizer_words(path, steps_of(file.normalizer, "normalizers")),
        byte_ids,
        groups,
        entries,
        len(entries) // 3,
    )


def _bpe_words(path: Path, steps: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return how a text is split into words, and flags."""
    names = [str(step["type"]) for step in steps]
    if not names or names[-1] != "ByteLevel" or names[:-1] not in ([], ["Split"]):
        raise unsupported(path, "the ByteLevel pre-tokenizer, or CLIP's", ", ".join(names) or "none")
    last = steps[-1]
    prefix = _PREFIX_SPACE if last.get("add_prefix_space", True) else 0
    again = bool(last.get("use_regex", True))
    if len(steps) == 1:
        return (_GPT2 if again else _NONE), prefix
    split = steps[0]
    pattern = str(dict(split["pattern"]).get("Regex"))
    kinds = {(_CLIP_WORDS, False): _CLIP, (_CLIP_WORDS, True): _CLIP, (_CLIP_NAMED, True): _CLIP_NAMES}
    found = kinds.get((pattern, again))
    if found is None or not split["invert"] or str(split["behavior"]).lower() != "removed" or prefix:
        raise unsupported(path, "CLIP's pattern, and no space before", pattern)
    return found, 0


def _bpe_decoding(path: Path, steps: Sequence[Mapping[str, Any]]) -> int:
    names = [str(step["type"]) for step in steps]
    marks = {"type": "Replace", "pattern": {"String": _END}, "content": " "}
    if names == ["ByteLevel"]:
        return 0
    if names != ["ByteLevel", "Replace"] or steps[1] != marks:
        raise unsupported(path, f"the ByteLevel decoder, {_END} made a space or not", ", ".join(names) or "none")
    return _END_MARKS


def _wordpiece(path: Path, file: TokenizerJson, model: WordPiece, tokens: Sequence[bytes]) -> _Parts:
    if model.continuing_subword_prefix != _CONTINUING:
        raise unsupported(path, f"continued words marked by {_CONTINUING}", model.continuing_subword_prefix)
    if model.unk_token not in model.vocab or not 0 < model.max_input_chars_per_word <= _MOST_LETTERS:
        found = f"{model.unk_token!r} and words of {model.max_input_chars_per_word} letters"
        raise unsupported(path, "an unknown token in the vocabulary, and words of 1 to 2**20 letters", found)
    splits = [str(step["type"]) for step in steps_of(file.pre_tokenizer, "pretokenizers")]
    if splits not in (["BertPreTokenizer"], ["WhitespaceSplit"]):
        raise unsupported(path, "BERT's pre-tokenizer, or blanks", ", ".join(splits) or "none")
    steps = normalizer_words(path, steps_of(file.normalizer, "normalizers"))
    return _Parts(
        _WORDPIECE,
        _SPACES,
        0,
        steps + (punctuation_words() if splits == ["BertPreTokenizer"] else []),
        entries=sorted(model.vocab.values(), key=lambda id_: tokens[id_]),
        entry_count=len(model.vocab),
        joints=_joints(path, file, tokens),
        unknown_id=model.vocab[model.unk_token],
        most_letters=model.max_input_chars_per_word,
    )


def _joints(path: Path, file: TokenizerJson, tokens: Sequence[bytes]) -> bytes:
    """Return how each token joins the one before it; the library is asked."""
    steps = steps_of(file.decoder, "decoders")
    names = [str(step["type"]) for step in steps]
    if names != ["WordPiece"] or steps[0]["prefix"] != _CONTINUING:
        raise unsupported(path, "the WordPiece decoder", ", ".join(names) or "none")
    decode = decoders.WordPiece(prefix=_CONTINUING, cleanup=bool(steps[0]["cleanup"])).decode
    special = {added.id for added in file.added_tokens}
    joints = bytearray(len(tokens))
    for id_, token in enumerate(map(bytes.decode, tokens)):
        if id_ in special or not token:
            continue
        forms = {f" {token}": _SPACE, token.removeprefix(_CONTINUING): _CONTINUED, token: _CLOSE}
        joint = forms.get(decode(["x", token])[1:])
        if joint is None or decode([token]) != token:
            raise unsupported(path, "tokens that decoding leaves as they are", repr(token))
        joints[id_] = joint
    return bytes(joints)


def _tokens(path: Path, file: TokenizerJson) -> list[bytes]:
    """Return the bytes of every id; those of an id without a token are empty."""
    for added in file.added_tokens:
        plain = added.special and not (added.normalized or added.single_word or added.lstrip or added.rstrip)
        if not plain or not added.content:
            raise unsupported(path, "added tokens that are special and matched as they are", repr(added.content))
    is_bpe = isinstance(file.model, Bpe)
    alphabet = _byte_alphabet() if is_bpe else {}
    vocab = file.model.vocab if isinstance(file.model, Bpe | WordPiece) else {}
    texts = {id_: token for token, id_ in vocab.items()}
    texts |= {added.id: added.content for added in file.added_tokens}
    special = {added.id for added in file.added_tokens}
    tokens = [b""] * (max(texts, default=0) + 1)
    for id_, text in texts.items():
        # As in the library's decoder: a token with a letter outside of the byte alphabet stands for itself.
        is_bytes = is_bpe and id_ not in special and all(letter in alphabet for letter in text)
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


def _byte_ids(path: Path, vocab: Mapping[str, int], endings: Sequence[str]) -> list[int]:
    """Return the ids of all bytes, once for each ending."""
    letters = {byte: letter for letter, byte in _byte_alphabet().items()}
    names = [letters[byte] + ending for ending in endings for byte in range(256)]
    missing = [name for name in names if name not in vocab]
    if missing:
        raise unsupported(path, "all 256 bytes in the vocabulary", f"{len(missing)} missing, the first {missing[0]!r}")
    return [vocab[name] for name in names]


def _merges(path: Path, model: Bpe, vocab_size: int) -> tuple[list[int], list[int]]:
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
