"""CLIP's byte pair encoding, as open_clip ships it, in Hugging Face tokenizers format."""

import json
from typing import Final

import open_clip
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from pocketlens.export.sources.vocabulary import Layout

__all__ = ["clip_bpe"]

# Words, single digits and runs of anything else; the contractions come first (Radford et al. 2021, section 2.4, and
# the pattern of its published tokenizer). The texts are in lower case by then.
_PATTERN: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_END: Final = "</w>"


def clip_bpe(source: open_clip.SimpleTokenizer) -> tuple[str, Layout]:
    """Return `tokenizer.json` and the layout of open_clip's `SimpleTokenizer`.

    Merges, vocabulary and ids are taken from `source`. Its cleaning is not in the file: see
    `pocketlens.export.sources.cleaning`. open_clip pads with id 0, which is the token "!".
    """
    merges = sorted(source.bpe_ranks, key=lambda pair: int(source.bpe_ranks[pair]))
    end = source.decoder[source.eot_token_id]
    backend = Tokenizer(BPE(vocab=dict(source.encoder), merges=merges, end_of_word_suffix=_END, unk_token=end))
    words = pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(_END, " ")])
    text = json.dumps(json.loads(backend.to_str()), ensure_ascii=False)
    return text, Layout(pad_id=0, bos_id=source.sot_token_id, eos_id=source.eot_token_id)
