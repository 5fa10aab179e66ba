from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from pocketlens.core.errors import BundleSchemaError
from pocketlens.core.tokenizer import SPECIAL_TOKENS, Tokenizer


def _backend(special: tuple[str, ...] = SPECIAL_TOKENS) -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a red ball on the grass", "two red balls"], trainer)
    return backend


TOKENIZER = Tokenizer(_backend(), text_length=12)


def test_special_tokens_have_the_first_ids() -> None:
    assert (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id) == (0, 1, 2)


def test_a_row_is_begin_text_end_padding() -> None:
    rows = TOKENIZER.encode_batch(["a red ball", ""])
    assert rows.dtype == np.int32
    assert rows.shape == (2, 12)
    ids = TOKENIZER.encode("a red ball")
    assert rows[0].tolist() == [1, *ids, 2] + [0] * (10 - len(ids))
    assert rows[1].tolist() == [1, 2] + [0] * 10


def test_a_text_that_is_too_long_keeps_its_beginning_and_its_end_token() -> None:
    long = "ball " * 50
    row = TOKENIZER.encode_batch([long])[0]
    assert row[0] == 1
    assert row[-1] == 2
    assert row[1:-1].tolist() == TOKENIZER.encode(long)[:10]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_lower_cased(text: str) -> None:
    import unicodedata

    expected = unicodedata.normalize("NFC", text).lower()
    decoded = TOKENIZER.decode(TOKENIZER.encode(text))
    # Rust and Python lower-case a few characters differently in context; what must hold is stability.
    assert TOKENIZER.decode(TOKENIZER.encode(decoded)) == decoded
    if expected.isascii():
        assert decoded == expected.strip()


def test_special_tokens_are_left_out_of_text() -> None:
    assert TOKENIZER.decode([1, *TOKENIZER.encode("two red balls"), 2, 0, 0]) == "two red balls"


def test_a_file_that_is_no_tokenizer_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": 1}')
    with pytest.raises(BundleSchemaError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path, text_length=12)


def test_a_vocabulary_without_special_tokens_is_a_typed_error() -> None:
    with pytest.raises(BundleSchemaError, match="<bos>"):
        Tokenizer(_backend(special=("<pad>",)), text_length=12)
