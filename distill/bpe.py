"""The compact vocabulary: a byte-level BPE trained on the captions at hand."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pocketlens.core.tokenizer import SPECIAL_TOKENS, UNK

__all__ = ["train_bpe"]


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` entries (Sennrich et al. 2016), lower-casing, NFC.

    All 256 bytes are in the alphabet, so any text is representable; the special tokens have ids 0 to 3.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
