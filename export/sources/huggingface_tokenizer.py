"""Transformers tokenizers: their file, and which ids begin, end and fill up a text."""

import json
from typing import Any, Final

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from transformers import SiglipTokenizer
from transformers.convert_slow_tokenizer import SentencePieceExtractor

from pocketlens.core.errors import ExportError
from pocketlens.export.sources.cleaning import Clean
from pocketlens.export.sources.vocabulary import Layout

__all__ = ["backend_json", "clean_of", "layout_of"]

_PROBE: Final = "a photo of a dog"
_UNIGRAM: Final = 1  # sentencepiece's number for the model type


def backend_json(tokenizer: Any, what: str) -> str:
    """Return `tokenizer` in Hugging Face tokenizers format; `what` names the model in messages.

    SigLIP's tokenizer runs sentencepiece itself: its pieces are written as the same unigram model. What it does
    to a text before is `clean_of`.

    Raises:
        ExportError: a tokenizer that has no such form.
    """
    if isinstance(tokenizer, SiglipTokenizer):
        return _sentencepiece(tokenizer, what)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unfit(what, "a tokenizer that the tokenizers library runs, or SigLIP's", type(tokenizer).__name__)
    text: str = backend.to_str()
    return text


def clean_of(tokenizer: Any, what: str) -> Clean:
    """Return what `tokenizer` does to a text before its file applies.

    Raises:
        ExportError: SigLIP's tokenizer without lower case.
    """
    if not isinstance(tokenizer, SiglipTokenizer):
        return "none"
    if not tokenizer.do_lower_case:
        raise _unfit(what, "do_lower_case, as SigLIP was trained with", "none")
    return "siglip"


def layout_of(tokenizer: Any, what: str) -> Layout:
    """Return which ids begin, end and fill up a text.

    Raises:
        ExportError: a text does not end with one token, begins with several, or is cut or filled up at its start.
    """
    bare = list(tokenizer(_PROBE, add_special_tokens=False).input_ids)
    full = list(tokenizer(_PROBE).input_ids)
    starts = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
    before, after = (full[: starts[0]], full[starts[0] + len(bare) :]) if starts else ([], [])
    if len(before) > 1 or len(after) != 1:
        raise _unfit(what, "texts of an optional first token, the words and one last token", f"{before} … {after}")
    if tokenizer.padding_side != "right" or tokenizer.truncation_side != "right" or tokenizer.pad_token_id is None:
        raise _unfit(what, "texts that are cut and filled up at their end", f"padding_side {tokenizer.padding_side}")
    return Layout(pad_id=int(tokenizer.pad_token_id), bos_id=before[0] if before else None, eos_id=after[0])


def _sentencepiece(tokenizer: SiglipTokenizer, what: str) -> str:
    proto = SentencePieceExtractor(tokenizer.vocab_file).proto
    if proto.trainer_spec.model_type != _UNIGRAM or proto.trainer_spec.byte_fallback:
        raise _unfit(what, "a unigram model of sentencepiece without bytes", "another kind")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    backend = Tokenizer(Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    text: str = json.dumps(json.loads(backend.to_str()), ensure_ascii=False)
    return text


def _unfit(what: str, expected: str, found: str) -> ExportError:
    return ExportError(f"tokenizer of {what}", expected=expected, found=found, remedy="Choose another model.")
