"""The recipes in `recipes/`, from data to a judged student: tiny stand-ins in the true formats, the rest as it is."""

import io
import json
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketlens.cli import main
from pocketlens.distill.recipe import read_recipe
from pocketlens.distill.students.student import load_student
from tests.distill.test_teachers import write_chat
from tests.distill.tiny import TEXTS
from tests.export.direct_models import write_blip, write_open_clip, write_siglip

RECIPES = Path(__file__).parents[2] / "recipes"
PICTURES = 24


def jpeg(seed: int) -> bytes:
    """A picture that no other seed is a near-duplicate of."""
    tiles = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(tiles).resize((80, 64), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    return out.getvalue()


def karpathy(root: Path) -> None:
    """COCO with Karpathy's splits, as `recipes/coco-small.toml` names its files."""
    images = []
    for number in range(PICTURES):
        folder, name = ("val2014", "train2014")[number % 2], f"COCO_{number:012d}.jpg"
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
        (root / "coco" / folder / name).write_bytes(jpeg(number))
        split = ("train", "train", "restval", "val", "test", "train")[number % 6]
        sentences = [{"raw": f"{text} and thing {number}"} for text in (TEXTS[number % 4], TEXTS[(number + 1) % 4])]
        images.append({"filepath": folder, "filename": name, "split": split, "sentences": sentences})
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def img2dataset(root: Path) -> None:
    """Two tars as img2dataset writes them."""
    (root / "cc3m").mkdir()
    for part in range(2):
        with tarfile.open(root / "cc3m" / f"{part:05d}.tar", "w") as tar:
            for number in range(part * PICTURES // 2, (part + 1) * PICTURES // 2):
                key = f"{part:05d}{number:04d}"
                said = {"caption": f"{TEXTS[number % 4]} {number}", "status": "success", "key": key}
                content = {"jpg": jpeg(number), "txt": said["caption"].encode(), "json": json.dumps(said).encode()}
                for suffix, data in content.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def photographs(root: Path) -> None:
    """A folder of pictures with folders in it, no captions."""
    for number in range(PICTURES):
        path = root / "photographs" / f"20{number % 3:02d}" / f"IMG_{number}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))


def dual_encoder(folder: Path) -> Path:
    """open_clip's format, as MobileCLIP2 is kept: CLIP's tokenizer."""
    vision = {"image_size": 32, "timm_model_name": "mobilenetv4_conv_small_035", "timm_proj": ""}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    return write_open_clip(folder, vision=vision, text=text)


CASES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Path], Callable[[Path], Path], dict[str, int]]] = {
    "coco-small": (karpathy, dual_encoder, write_blip, {}),
    "cc3m-base": (img2dataset, write_siglip, write_chat, {"test": 4, "val": 4}),
    "photo-library-small": (photographs, write_siglip, write_blip, {"test": 4, "val": 4}),
}


def test_every_recipe_that_ships_is_tried_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} == CASES.keys()
    for path in RECIPES.glob("*.toml"):
        assert read_recipe(path).name == path.stem


@pytest.mark.parametrize("preset", ["nano", pytest.param("", marks=pytest.mark.slow, id="its own student")])
@pytest.mark.parametrize("name", CASES)
def test_a_shipped_recipe_runs_to_a_judged_student(
    name: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where its relative paths begin
    data, embedder, captioner, sizes = CASES[name]
    data(tmp_path)
    plan = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    source = plan["teachers"]["embedder"].partition(":")[0]
    plan["teachers"]["embedder"] = f"{source}:{embedder(tmp_path / 'embedder')}"
    plan["teachers"]["captioner"] = f"hf:{captioner(tmp_path / 'captioner')}"
    # A random captioner answers at length; the three things that are made smaller are counts.
    plan["threads"], plan["teachers"]["max_tokens"] = 1, 6
    plan["data"] |= sizes
    often = {key: 2 for key in ("steps", "checkpoint_every", "validate_every") if key in plan["train"]}
    plan["train"] |= {"batch": 8, **often}
    plan["student"]["preset"] = preset or plan["student"]["preset"]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(_toml(plan), encoding="utf-8")
    work = tmp_path / "work"
    assert main(["distill", str(recipe), "--work", str(work), "--json"]) == 0, capsys.readouterr().err
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if name == "photo-library-small":  # it has no captions to be judged by
        assert written == [{"student": str(work / "student")}]
    else:
        assert written[-1]["subject"] == "student"
        assert {"r1_i2t", "cider"} <= written[-1]["figures"].keys()
    student, _ = load_student(work / "student")
    assert student.config.backbone == read_recipe(recipe).preset().backbone


def _toml(table: dict[str, Any], path: str = "") -> str:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"[{path}{key}]", _toml(value, f"{path}{key}.")]
    return "\n".join(lines)
