"""Models of other libraries, opened: the same answers as their own library gives, in the contract of a bundle."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from pocketlens.core.errors import DataError, ExportError
from pocketlens.core.preprocess import preprocess
from pocketlens.export.graphs import student_graphs
from pocketlens.export.sources import OpenedSource, exportable_of, is_direct, open_source
from pocketlens.export.sources.agreement import check_ids, id_agreement
from pocketlens.export.sources.exportable import Exportable, greedy_ids
from pocketlens.export.sources.lowerable import SplitAttention, lowerable
from pocketlens.export.sources.preprocessing import huggingface_pixels, open_clip_pixels
from pocketlens.export.targets.onnx_float import write_float
from tests.export import direct_models as models

Writer = Callable[[Path], Path]


def _vit(folder: Path) -> Path:
    return models.write_open_clip(folder, vision=models.VIT, text=models.CLIP_TEXT)


def _fastvit(folder: Path) -> Path:
    text = models.CLIP_TEXT | {"no_causal_mask": True}
    return models.write_open_clip(folder, vision=models.FASTVIT, text=text, custom=True)


DUAL: dict[str, tuple[str, Writer]] = {
    "open_clip-vit": ("open_clip:local-dir:", _vit),
    "open_clip-fastvit": ("open_clip:local-dir:", _fastvit),
    "open_clip-siglip": ("open_clip:local-dir:", models.write_open_clip_siglip),
    "clip": ("hf:", models.write_clip),
    "siglip": ("hf:", models.write_siglip),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OpenedSource]:
    folder = tmp_path_factory.mktemp("models")
    found: dict[str, OpenedSource] = {}

    def get(name: str) -> OpenedSource:
        if name not in found:
            scheme, write = (DUAL | {"blip": ("hf:", models.write_blip)})[name]
            found[name] = open_source(f"{scheme}{write(folder / name)}")
        return found[name]

    return get


def _pixels(model: Exportable, count: int = 6) -> Tensor:
    spec = model.preprocess
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, spec.height_px, spec.width_px, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", DUAL)
@torch.no_grad()
def test_both_towers_of_a_dual_encoder_answer_like_the_original(
    name: str, opened: Callable[[str], OpenedSource]
) -> None:
    source = opened(name)
    model, pixels = source.model, _pixels(source.model)
    embedding, visual = model.image(pixels)
    expected, _ = model.original.images(pixels)
    assert visual is None
    assert embedding.shape == (len(pixels), model.embed_dim)
    assert float(expected.std(dim=0).mean()) > 0.01  # else every picture gets the same vector, and nothing is tested
    torch.testing.assert_close(embedding, expected, atol=2e-6, rtol=0)
    ids = torch.from_numpy(source.tokenizer.encode_batch([*models.TEXTS, "", "far too long " * 40]))
    found, expected = model.modules["text_encoder"](ids), model.original.texts(ids)
    assert float(expected.std(dim=0).mean()) > 0.01
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert model.tasks == ("embed",)
    assert model.caption is None


@pytest.mark.parametrize("name", DUAL)
@torch.no_grad()
def test_texts_get_the_embedding_that_the_original_gives_its_own_ids(
    name: str, opened: Callable[[str], OpenedSource]
) -> None:
    source = opened(name)
    texts = [*models.TEXTS, "Upper CASE, and  blanks ", "", "far too long " * 40]
    assert id_agreement(source, texts) == [True] * len(texts)
    assert check_ids(source, texts) == f"{len(texts)} of {len(texts)} texts have the ids of the model's own tokenizer"


def test_a_tokenizer_that_disagrees_stops_the_export(opened: Callable[[str], OpenedSource]) -> None:
    with pytest.raises(ExportError, match="0 that agree; the first that does not is 'Fish &amp; chips'"):
        check_ids(opened("open_clip-vit"), ["Fish &amp; chips"])


def test_the_bundle_pads_with_a_token_of_its_own_and_the_graph_puts_the_models_in(
    opened: Callable[[str], OpenedSource],
) -> None:
    source = opened("open_clip-vit")  # open_clip pads with 0, which is the token "!"
    ids = torch.from_numpy(source.tokenizer.encode_batch(["!"]))
    own = source.model.modules["text_encoder"].own_ids(ids)
    assert ids[0, 3:].unique().tolist() == [source.tokenizer.pad_id] == [49408]
    assert own[0].tolist() == [49406, 256, 49407, *[0] * 13]
    assert source.tokenizer.decode(ids[0].tolist()) == "!"


def test_a_model_without_a_first_token_gets_it_cut_off(opened: Callable[[str], OpenedSource]) -> None:
    source = opened("siglip")
    ids = torch.from_numpy(source.tokenizer.encode_batch(["a dog"]))
    own = source.model.modules["text_encoder"].own_ids(ids)
    assert ids.shape == (1, 13)
    assert own.shape == (1, 12)
    assert ids[0, 0] == source.tokenizer.bos_id
    assert source.tokenizer.bos_id not in own
    assert own[0, -1] == 1  # SigLIP pads with the end token


@torch.no_grad()
def test_blips_captions_are_token_identical_to_its_own_generate(opened: Callable[[str], OpenedSource]) -> None:
    source = opened("blip")
    model, pixels, tokenizer = source.model, _pixels(source.model, 24), source.tokenizer
    assert model.caption is not None
    embedding, visual = model.image(pixels)
    expected, seen = model.original.images(pixels)
    assert visual is not None
    assert seen is not None
    torch.testing.assert_close(embedding, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(visual, seen, atol=1e-5, rtol=1e-5)
    ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    modules = (model.modules["caption_prefill"], model.modules["caption_decode"])
    found = greedy_ids(*modules, visual, model.caption, **ends)
    captions = model.original.captions(pixels, visual, **ends)
    assert found == captions
    lengths = {len(caption) for caption in captions}
    assert len(lengths) > 3  # some end early, some are cut
    assert max(lengths) == model.caption.max_tokens
    assert len({tuple(caption) for caption in captions}) > 10
    assert model.tasks == ("caption",)


@torch.no_grad()
def test_blips_cache_keeps_the_picture_in_front_and_the_text_behind(opened: Callable[[str], OpenedSource]) -> None:
    source = opened("blip")
    model = source.model
    assert model.caption is not None
    visual = model.image(_pixels(model, 2))[1]
    cache = model.modules["caption_prefill"](visual)
    count, free = model.caption.prefix_length, model.caption.max_tokens
    assert cache.shape == (2, 2, 2, 4, count + free, 8)
    assert bool((cache[..., count:, :] == 0).all())
    token = torch.full((2,), source.tokenizer.bos_id, dtype=torch.int32)
    # rows of one batch may stand at different positions
    position = torch.tensor([count, count + 3], dtype=torch.int32)
    logits, grown = model.modules["caption_decode"](token, position, cache)
    assert logits.shape == (2, model.vocab_size)
    torch.testing.assert_close(grown[..., :count, :], cache[..., :count, :], atol=0, rtol=0)
    written = (grown[..., count:, :] != 0).any(dim=-1).any(dim=3).any(dim=2).any(dim=1)  # (B, max_tokens)
    assert written.nonzero().tolist() == [[0, 0], [1, 3]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m0_9", "mobileone_s0"])
def test_fusing_branches_keeps_the_outputs_and_leaves_no_branch(name: str) -> None:
    torch.manual_seed(0)
    model = models.stir(timm.create_model(name, pretrained=False, num_classes=8))
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    fused = lowerable(model)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(fused(images), expected, atol=2e-4, rtol=2e-4)
    before, after = (sum(isinstance(m, nn.BatchNorm2d) for m in part.modules()) for part in (model, fused))
    assert after < before / 4
    torch.testing.assert_close(model(images), expected, atol=0, rtol=0)  # the original is left alone


@torch.no_grad()
def test_split_attention_answers_like_torchs() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    x, mask = torch.randn(2, 5, 12), torch.full((5, 5), float("-inf")).triu(1)
    expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    found = SplitAttention(attention)(x, x, x, attn_mask=mask.clamp(min=-1e4))[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    probe = torch.randn(2, 1, 12)
    torch.testing.assert_close(SplitAttention(attention)(probe, x, x)[0], attention(probe, x, x)[0], atol=1e-6, rtol=0)


def test_a_student_is_exportable_too(opened: Callable[[str], OpenedSource], student_folder: Path) -> None:
    source = open_source(str(student_folder))
    assert source.model.tasks == ("embed", "caption")
    assert tuple(source.model.modules) == ("image_encoder", "text_encoder", "caption_prefill", "caption_decode")
    assert len(source.digest) == 64
    assert exportable_of(source.model) is source.model
    assert [is_direct(name) for name in ("hf:x", "open_clip:x", "run/hf:x")] == [True, True, False]


def test_the_digest_follows_the_weights(tmp_path: Path) -> None:
    from transformers import CLIPModel

    first, second = models.write_clip(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(first, second)
    digest = open_source(f"hf:{first}").digest
    assert open_source(f"hf:{second}").digest == digest
    model = CLIPModel.from_pretrained(second)
    model.text_projection.weight.data[0, 0] += 0.5
    models.save(second, [model])
    open_source.cache_clear()
    assert open_source(f"hf:{second}").digest != digest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("open_clip:no-such-model", "open_clip has built in"),
        ("open_clip:local-dir:/no/such/folder", "open_clip can create"),
        ("hf:/no/such/folder", "save_pretrained wrote"),
    ],
)
def test_what_cannot_be_opened_is_a_typed_error(name: str, expected: str) -> None:
    with pytest.raises(ExportError, match=expected):
        open_source(name)


def test_a_run_folder_that_is_none_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="student folder"):
        open_source(str(tmp_path / "nothing"))


@pytest.mark.parametrize("part", ["vision_model", "text_model"])
def test_half_a_dual_encoder_is_refused(part: str, tmp_path: Path) -> None:
    from transformers import CLIPModel

    whole = CLIPModel.from_pretrained(models.write_clip(tmp_path / "whole"))
    getattr(whole, part).save_pretrained(tmp_path / part)
    with pytest.raises(ExportError, match="a whole model, with the parts of both sides"):
        open_source(f"hf:{tmp_path / part}")


def test_a_model_without_a_picture_part_is_refused(opened: Callable[[str], OpenedSource]) -> None:
    model = opened("clip").model
    with pytest.raises(ExportError, match="found text_encoder"):
        Exportable(
            {"text_encoder": model.modules["text_encoder"]}, model.original, model.preprocess, (), (), 20, 16, 300
        )


def test_preprocessing_is_the_models_own(opened: Callable[[str], OpenedSource], tmp_path: Path) -> None:
    from PIL import Image

    model = opened("open_clip-vit").model
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)
    own = open_clip.image_transform(
        models.SIDE_PX, is_train=False, mean=models.MEAN, std=models.STD, resize_mode="shortest"
    )(Image.open(path))
    pixels = torch.from_numpy(preprocess(path, model.preprocess))[None]
    levels = (own * torch.tensor(models.STD).view(3, 1, 1) + torch.tensor(models.MEAN).view(3, 1, 1)) * 255
    difference = (levels.permute(1, 2, 0) - pixels[0]).abs()
    assert float(difference.max()) < 1.01  # the order of the two passes, rounded in between
    assert float((difference > 0.5).float().mean()) < 0.02


def test_specs_of_huggingface_processors() -> None:
    clip = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    common = {"resample": 3, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    found = huggingface_pixels(clip | common, "m")
    assert (found.spec.height_px, found.spec.fit, found.spec.filter) == (224, "crop", "bicubic")
    squash = {"size": {"height": 384, "width": 256}, "resample": 2}
    found = huggingface_pixels(common | squash | {"do_normalize": False}, "m")
    assert (found.spec.height_px, found.spec.width_px, found.spec.fit, found.spec.filter) == (
        384,
        256,
        "squash",
        "bilinear",
    )
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for wrong in ({"size": {"shortest_edge": 256}}, {"resample": 1}, {"rescale_factor": 1.0}, {"do_pad": True}):
        with pytest.raises(ExportError, match="preprocessing of m"):
            huggingface_pixels(clip | common | wrong, "m")


def test_specs_of_open_clip() -> None:
    config = {"size": 256, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "resize_mode": "longest"}
    spec = open_clip_pixels(config | {"fill_color": 7}, "m").spec
    assert (spec.width_px, spec.fit, spec.filter, spec.pad_colour) == (256, "pad", "bilinear", (7, 7, 7))
    assert open_clip_pixels(config | {"size": (64, 32), "resize_mode": None}, "m").spec.height_px == 64
    with pytest.raises(ExportError, match="preprocessing of m"):
        open_clip_pixels(config | {"interpolation": "random"}, "m")


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_no_constant_of_the_onnx_graph_has_the_name_of_its_result(
    opened: Callable[[str], OpenedSource], tmp_path: Path, name: str
) -> None:
    # transformers' position table is called `embedding`, and so is what the graph gives: ONNX Runtime ran it
    # all the same, quantization refused it.
    graph = student_graphs(opened(name).model)["image_encoder"]
    write_float(graph, tmp_path / "x.onnx")
    model = onnx.load(tmp_path / "x.onnx")
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert not {tensor.name for tensor in model.graph.initializer} & {value.name for value in model.graph.output}
