"""Teachers of every format, from tiny models saved as their libraries save them."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pocketlens.core.errors import TeacherError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.teachers.ensemble import EnsembleTeacher
from pocketlens.distill.teachers.hf_captioner import ChatCaptioner, HfCaptioner
from pocketlens.distill.teachers.hf_dual_encoder import HfDualEncoder
from pocketlens.distill.teachers.onnx_pair import OnnxPair
from pocketlens.distill.teachers.open_clip_teacher import OpenClipTeacher
from pocketlens.distill.teachers.opening import captioner_card, embedder_card, open_captioner, open_embedder
from pocketlens.distill.teachers.towers import FrozenTowers, TowersCard
from tests.distill.tiny import noise, write_captioner, write_embedder
from tests.export.direct_models import TEXTS, write_blip, write_clip, write_siglip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


def check_embedder(teacher: object, side: int) -> None:
    assert (teacher.preprocess.height_px, teacher.preprocess.width_px) == (side, side)  # type: ignore[attr-defined]
    images = teacher.embed_images(noise(3, side))  # type: ignore[attr-defined]
    texts = teacher.embed_texts(["a red ball", "two blue cars at night on a bridge"])  # type: ignore[attr-defined]
    assert images.shape == (3, teacher.dim)  # type: ignore[attr-defined]
    assert texts.shape == (2, teacher.dim)  # type: ignore[attr-defined]
    assert images.dtype == texts.dtype == np.float32
    assert np.allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1.0, atol=1e-5)
    assert len(teacher.digest) == 64  # type: ignore[attr-defined]


# Dual encoders


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_transformers_dual_encoders_answer_as_the_library_does(write: object, root: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    folder = write(root / write.__name__)  # type: ignore[operator, attr-defined]
    teacher = open_embedder(str(folder))
    assert isinstance(teacher, HfDualEncoder)
    check_embedder(teacher, 32)
    pixels = noise(2, 32)
    with quiet_loading():
        model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    padding = "max_length" if write is write_siglip else True
    inputs = processor(
        text=list(TEXTS[:2]), images=list(pixels), return_tensors="pt", padding=padding, do_resize=False,
        do_center_crop=False, truncation=True,
    ) if write is write_clip else processor(text=list(TEXTS[:2]), images=list(pixels), return_tensors="pt",
        padding=padding, truncation=True, max_length=12)  # fmt: skip
    with torch.inference_mode():
        output = model(**inputs)
    assert np.allclose(teacher.embed_images(pixels), output.image_embeds.numpy(), atol=1e-4)
    assert np.allclose(teacher.embed_texts(TEXTS[:2]), output.text_embeds.numpy(), atol=1e-4)


def test_an_open_clip_folder_and_a_name_that_is_none(root: Path) -> None:
    teacher = open_embedder(str(write_embedder(root / "open_clip")))
    assert isinstance(teacher, OpenClipTeacher)
    check_embedder(teacher, 32)
    with pytest.raises(TeacherError, match="list_models"):
        open_embedder("open_clip:no-such-model")


class _ImageGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 12)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.flatten(1))


class _TextGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(280, 12)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[..., None].to(torch.float32)
        return (self.table(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)


@pytest.fixture(scope="module")
def onnx_pair(root: Path) -> Path:
    from pocketlens.distill.bpe import train_bpe
    from pocketlens.export.quiet import quiet

    folder = root / "onnx"
    folder.mkdir()
    train_bpe(TEXTS, vocab_size=280).save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    ids = torch.ones(2, 5, dtype=torch.int64)
    with quiet():
        torch.onnx.export(
            _ImageGraph().eval(), (torch.rand(2, 3, 16, 16),), folder / "image_encoder.onnx", input_names=["pixels"],
            dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
        )  # fmt: skip
        torch.onnx.export(
            _TextGraph().eval(), (ids, ids), folder / "text_encoder.onnx", input_names=["input_ids", "attention_mask"],
            dynamo=True, dynamic_shapes=({0: batch, 1: length},) * 2, verbose=False,
        )  # fmt: skip
    card = {"id": "pair", "licence": "MIT", "preprocess": {"height_px": 16, "width_px": 16}, "mean": [0.5] * 3}
    (folder / "teacher.json").write_text(json.dumps(card))
    return folder


def test_a_pair_of_onnx_encoders(onnx_pair: Path) -> None:
    teacher = open_embedder(str(onnx_pair))
    assert isinstance(teacher, OnnxPair)
    check_embedder(teacher, 16)
    alone = teacher.embed_texts(["a red ball"])
    beside = teacher.embed_texts(["a red ball", "a much longer text than the other one"])
    assert np.allclose(alone[0], beside[0], atol=1e-6)  # padding is masked
    assert embedder_card(str(onnx_pair)).licence == "MIT"


def test_a_card_that_lacks_its_preprocessing_is_refused(onnx_pair: Path, tmp_path: Path) -> None:
    for file in onnx_pair.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "teacher.json").write_text('{"id": "pair", "licence": "MIT"}')
    with pytest.raises(TeacherError, match="preprocess"):
        open_embedder(str(tmp_path))


@pytest.fixture(scope="module")
def towers(root: Path) -> Path:
    import timm
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = root / "towers"
    (folder / "bert").mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in TEXTS for w in t.split()})]
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    with quiet_loading():
        BertModel(config).save_pretrained(folder / "bert")
        BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder / "bert")
        parts = modules.Transformer(str(folder / "bert")), modules.Pooling(16)
        SentenceTransformer(modules=list(parts), device="cpu").save(str(folder / "text"))
    backbone = timm.create_model("mobilenetv4_conv_small_035", num_classes=10)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in backbone.state_dict().items()}
    save_file(weights, folder / "backbone.safetensors")
    heads = nn.ModuleDict({
        "image_head": nn.Sequential(nn.Linear(backbone.head_hidden_size, 24), nn.GELU(), nn.Linear(24, 8)),
        "text_head": nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)),
    })  # fmt: skip
    save_file(heads.state_dict(), folder / "heads.safetensors")
    card = TowersCard(
        id="two-towers", licence="research-only", backbone="mobilenetv4_conv_small_035",
        backbone_options={"num_classes": 10}, preprocess=PreprocessSpec(height_px=64, width_px=64),
        text_model=str(folder / "text"), widths=(24,), dim=8,
    )  # fmt: skip
    (folder / "towers.json").write_bytes(msgspec.json.encode(card))
    return folder


def test_frozen_towers_with_trained_heads(towers: Path) -> None:
    teacher = open_embedder(str(towers))
    assert isinstance(teacher, FrozenTowers)
    check_embedder(teacher, 64)
    assert embedder_card(str(towers)).licence == "research-only"


def test_heads_of_another_width_are_refused(towers: Path, tmp_path: Path) -> None:
    for name in ("towers.json", "heads.safetensors", "backbone.safetensors"):
        (tmp_path / name).write_bytes((towers / name).read_bytes())
    card = json.loads((tmp_path / "towers.json").read_text())
    (tmp_path / "towers.json").write_text(json.dumps(card | {"dim": 9}))
    with pytest.raises(TeacherError, match="size mismatch"):
        open_embedder(str(tmp_path))


def test_an_ensembles_cosine_is_the_mean_of_its_members(onnx_pair: Path, towers: Path) -> None:
    names = (str(onnx_pair), str(towers))
    teacher = open_embedder(names)
    assert isinstance(teacher, EnsembleTeacher)
    check_embedder(teacher, 64)
    from pocketlens.core.preprocess import fit_pixels

    pixels = noise(2, 64)
    small = np.stack([fit_pixels(picture, PreprocessSpec(height_px=16, width_px=16)) for picture in pixels])
    members = [open_embedder(name) for name in names]
    each = [m.embed_images(p) @ m.embed_texts(TEXTS).T for m, p in zip(members, (small, pixels), strict=True)]
    whole = teacher.embed_images(pixels) @ teacher.embed_texts(TEXTS).T
    assert np.allclose(whole, np.mean(each, axis=0), atol=1e-5)
    assert teacher.licence == "MIT AND research-only"
    assert embedder_card(names).licence == teacher.licence
    with pytest.raises(TeacherError, match="at least one"):
        open_embedder(())


# Captioners


def write_git(folder: Path) -> Path:
    from transformers import BertTokenizer, CLIPImageProcessor, GitConfig, GitForCausalLM

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in TEXTS for w in t.split()})]
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    config = GitConfig(
        vision_config=vision, vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    with quiet_loading():
        model = GitForCausalLM(config)
        nn.init.normal_(model.output.weight, std=2.0)
        model.save_pretrained(folder)
        BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
        size = {"height": 32, "width": 32}
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size, resample=3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("write", [write_captioner, write_blip, write_git])
def test_captioners_say_what_generate_says(write: object, root: Path) -> None:
    folder = write(root / write.__name__)  # type: ignore[operator, attr-defined]
    teacher = open_captioner(str(folder), max_tokens=7)
    assert isinstance(teacher, HfCaptioner)
    pixels = noise(3, 32)
    with torch.inference_mode(), quiet_loading():
        images = teacher._pixels.tensor(pixels)
        ids = teacher.model.generate(pixel_values=images, max_new_tokens=7, do_sample=False, num_beams=1)
        best = teacher.model.generate(
            pixel_values=images, max_new_tokens=7, do_sample=False, num_beams=4, num_return_sequences=3
        )
    greedy = teacher.caption(pixels)
    texts = teacher._tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [one.text for one in greedy] == [text.strip() for text in texts]
    found = teacher.captions(pixels, count=3, top_k=2)
    expected = [text.strip() for text in teacher._tokenizer.batch_decode(best, skip_special_tokens=True)]
    for row, captions in enumerate(found):
        assert sorted(c.text for c in captions) == sorted(expected[3 * row : 3 * row + 3])
        assert [c.logprob for c in captions] == sorted((c.logprob for c in captions), reverse=True)
        assert all(c.top_ids.shape == (len(c.token_ids), 2) for c in captions)
        # the best of a beam search is at least as likely as the greedy caption, give or take the length penalty
        assert all(c.logprob < 0 for c in captions)
    with_alternatives = teacher.captions(pixels, count=1, top_k=1)
    assert [c[0].logprob for c in with_alternatives] == pytest.approx([c.logprob for c in greedy], abs=1e-4)


def test_a_greedy_captions_own_ids_are_its_likeliest_ones(root: Path) -> None:
    folder = root / "write_blip" if (root / "write_blip").exists() else write_blip(root / "write_blip")
    for (caption,) in open_captioner(str(folder), max_tokens=6).captions(noise(3, 32), count=1, top_k=3):
        assert caption.top_ids[:, 0].tolist() == caption.token_ids.tolist()
        assert caption.top_logprobs[:, 0].sum() == pytest.approx(caption.logprob, abs=1e-4)


def write_chat(folder: Path) -> Path:
    """A tiny SmolVLM with its processor and its chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMProcessor,
    )
    from transformers.models.smolvlm import SmolVLMImageProcessor, SmolVLMVideoProcessor

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>",
               "<end_of_utterance>", "<row_1_col_1>"]  # fmt: skip
    words = sorted(
        {w for t in (*TEXTS, "User: Assistant: Describe the picture in one short sentence .") for w in t.split()}
    )
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=special[4:],
    )  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": len(special) + len(words), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = SmolVLMConfig(text_config=text, vision_config=vision, image_token_id=4, scale_factor=2, pad_token_id=0)
    torch.manual_seed(5)
    with quiet_loading():
        model = SmolVLMForConditionalGeneration(config)
        model.generation_config.update(eos_token_id=2, pad_token_id=0, bos_token_id=1)
        model.save_pretrained(folder)
        images = SmolVLMImageProcessor(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        )
        template = (
            "{% for m in messages %}User: {% for c in m.content %}{% if c.type == 'image' %}<image> "
            "{% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}Assistant:"
        )
        processor = SmolVLMProcessor(
            images, tokenizer, video_processor=SmolVLMVideoProcessor(), image_seq_len=4, chat_template=template
        )
        processor.save_pretrained(folder)
    return folder


def test_a_chat_model_is_asked_through_its_template(root: Path) -> None:
    teacher = open_captioner(str(write_chat(root / "chat")), prompt="Describe the picture", max_tokens=5)
    assert isinstance(teacher, ChatCaptioner)
    spec = teacher.preprocess
    pixels = noise(2, spec.height_px)
    greedy, several = teacher.caption(pixels), teacher.captions(pixels, count=2, top_k=2)
    assert len(greedy) == 2
    assert all(caption.logprob < 0 for caption in greedy)
    assert [len(captions) for captions in several] == [2, 2]
    other = open_captioner(str(root / "chat"), prompt="one short sentence", max_tokens=5)
    assert other.digest != teacher.digest


# What cannot be opened


def test_a_name_without_a_card_has_an_unknown_licence() -> None:
    assert embedder_card("open_clip:MobileCLIP2-S0").licence == "unknown"
    assert captioner_card("hf:Salesforce/blip-image-captioning-base").id == "Salesforce/blip-image-captioning-base"


@pytest.mark.parametrize("name", ["gone/folder", "/gone/folder", "hf:/gone/folder"])
def test_a_folder_that_is_not_there_is_a_typed_error(name: str) -> None:
    for opening in (open_embedder, open_captioner):
        with pytest.raises(TeacherError):
            opening(name)


def test_a_folder_of_something_else_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    for opening in (open_embedder, open_captioner):
        with pytest.raises(TeacherError):
            opening(str(tmp_path))
