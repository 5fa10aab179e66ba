from pathlib import Path

import msgspec
import pytest
import torch

from pocketlens.core.errors import DataError, RecipeError
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.students.config import PRESETS
from pocketlens.distill.students.student import Student, load_student, save_student
from tests.distill.tiny import CONFIG, TEXTS, noise


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    model = Student(CONFIG)
    model.train()
    with torch.no_grad():  # give the batch norms statistics that mean something
        model.image_encoder(torch.from_numpy(noise(8, 32)))
    return model.eval()


def test_nano_stays_under_three_million_parameters() -> None:
    assert Student(PRESETS["nano"]).parameter_count() <= 3_000_000


@torch.no_grad()
def test_embeddings_have_unit_norm(student: Student) -> None:
    images, visual = student.image_encoder(torch.from_numpy(noise(3, 32)))
    texts = student.text_encoder(torch.randint(4, CONFIG.vocab_size, (3, CONFIG.text_length), dtype=torch.int32))
    assert images.shape == texts.shape == (3, CONFIG.embed_dim)
    assert visual.shape == (3, student.image_encoder.visual_tokens, CONFIG.width)
    for vectors in (images, texts):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)


@torch.no_grad()
def test_what_is_behind_the_padding_does_not_change_a_text(student: Student) -> None:
    ids = torch.tensor([[1, 7, 9, 2] + [0] * (CONFIG.text_length - 4)], dtype=torch.int32)
    alone = student.text_encoder(ids)
    longer = torch.cat([ids, torch.full_like(ids, 5)])
    assert torch.allclose(student.text_encoder(longer)[:1], alone, atol=1e-6)
    assert not torch.allclose(student.text_encoder(longer)[1:], alone, atol=1e-3)


@torch.no_grad()
def test_decoding_with_the_cache_agrees_with_scoring_the_whole_caption(student: Student) -> None:
    _, visual = student.image_encoder(torch.from_numpy(noise(2, 32, seed=1)))
    ids = torch.randint(4, CONFIG.vocab_size, (2, CONFIG.caption_tokens), dtype=torch.int32)
    whole = student.caption_decoder(visual, ids)
    step, cache = student.caption_decode(), student.caption_prefill()(visual)
    # a cache may hold anything where nothing was written yet
    cache[..., student.caption_decoder.visual_tokens :, :] = 1e3
    for offset in range(CONFIG.caption_tokens):
        position = torch.full((2,), student.caption_decoder.visual_tokens + offset, dtype=torch.int32)
        logits, cache = step(ids[:, offset], position, cache)
        assert torch.allclose(logits, whole[:, offset], atol=1e-4)


@torch.no_grad()
def test_rows_of_a_batch_may_stand_at_different_positions(student: Student) -> None:
    _, visual = student.image_encoder(torch.from_numpy(noise(2, 32, seed=2)))
    step, start = student.caption_decode(), student.caption_decoder.visual_tokens
    cache = student.caption_prefill()(visual)
    first = torch.tensor([1, 1], dtype=torch.int32)
    _, ahead = step(first, torch.tensor([start, start], dtype=torch.int32), cache)
    mixed = torch.stack([ahead[0], cache[1]])
    logits, _ = step(
        torch.tensor([5, 1], dtype=torch.int32), torch.tensor([start + 1, start], dtype=torch.int32), mixed
    )
    behind, _ = step(first[1:], torch.tensor([start], dtype=torch.int32), cache[1:])
    assert torch.allclose(logits[1:], behind, atol=1e-5)


def test_a_saved_student_comes_back_the_same(student: Student, tmp_path: Path) -> None:
    save_student(tmp_path, student)
    (tmp_path / "tokenizer.json").write_text(train_bpe(TEXTS, vocab_size=CONFIG.vocab_size).to_str())
    loaded, tokenizer = load_student(tmp_path)
    assert loaded.config == CONFIG
    assert tokenizer.text_length == CONFIG.text_length
    pixels = torch.from_numpy(noise(1, 32))
    with torch.no_grad():
        assert torch.equal(loaded.image_encoder(pixels)[0], student.image_encoder(pixels)[0])


@pytest.mark.parametrize("broken", ["student.json", "student.safetensors"])
def test_a_damaged_student_folder_is_one_typed_error(student: Student, tmp_path: Path, broken: str) -> None:
    save_student(tmp_path, student)
    (tmp_path / broken).write_bytes(b"{")
    with pytest.raises(DataError, match=r"student\.safetensors"):
        load_student(tmp_path)


def test_an_unknown_backbone_is_a_recipe_error() -> None:
    import msgspec

    with pytest.raises(RecipeError, match="no_such_backbone"):
        Student(msgspec.structs.replace(CONFIG, backbone="no_such_backbone"))


@torch.no_grad()
def test_queries_weigh_the_places_of_the_map_and_start_near_their_mean() -> None:
    torch.manual_seed(0)
    model = Student(msgspec.structs.replace(CONFIG, image_queries=2)).eval()
    image = model.image_encoder
    features = torch.randn(3, image.channels, 2, 2)
    attention = image.attention
    assert attention is not None
    mean = features.mean(dim=(2, 3)).repeat(1, 2)
    assert attention(torch.zeros_like(features)).abs().max() == 0
    attention.prior.zero_()
    attention.scores.weight.zero_()
    assert torch.allclose(attention(features), mean, atol=1e-6)
    attention.prior[:, 0, 3] = 1e4  # the first query looks at the last place alone
    assert torch.allclose(attention(features)[:, : image.channels], features[:, :, 1, 1], atol=1e-6)
    embeddings, _ = model.image_encoder(torch.from_numpy(noise(3, 32)))
    assert embeddings.shape == (3, CONFIG.embed_dim)
    assert image.projection.in_features == 3 * image.channels
