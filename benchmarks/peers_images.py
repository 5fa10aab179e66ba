"""One contender of `benchmarks.throughput`: embeds the listed pictures each time a line comes in on stdin.

    PYTHON benchmarks/peers_images.py NAME MODEL PICTURES.txt

Runs in the environment of the library that it measures, so it imports nothing of this project but where the
contender is this project. Prints one JSON line after loading and one after each pass.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Embed = Callable[[list[str]], int]


def pocketlens(model: str) -> Embed:
    """This project, with its defaults."""
    from pocketlens.runtime import load

    lens = load(model)
    return lambda paths: sum(len(vector) > 0 for vector in lens.embed_images(paths))


def fastembed(model: str, *, parallel: int | None = None) -> Embed:
    """The library with its defaults, its model read from a folder."""
    from fastembed import ImageEmbedding

    opened = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=model, lazy_load=False)
    return lambda paths: sum(len(vector) > 0 for vector in opened.embed(paths, parallel=parallel))


def fastembed_parallel(model: str) -> Embed:
    """The library with one process for each core."""
    return fastembed(model, parallel=0)


def open_clip(model: str) -> Embed:
    """open_clip's evaluation transform and the same tower in eager torch, batches of 16."""
    import open_clip.transform
    import timm
    import torch
    from PIL import Image
    from torch import nn

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("mobilenetv4_conv_small", pretrained=False, num_classes=0)
            self.projection = nn.Linear(self.backbone.head_hidden_size, 512, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.projection(self.backbone(x)), dim=-1)

    tower = Tower().eval()
    tower.load_state_dict(torch.load(Path(model, "tower.pt"), weights_only=True))
    transform = open_clip.transform.image_transform(224, is_train=False)

    def embed(paths: list[str]) -> int:
        done = 0
        with torch.inference_mode():
            for first in range(0, len(paths), 16):
                batch = torch.stack([transform(Image.open(path)) for path in paths[first : first + 16]])
                done += len(tower(batch).numpy())
        return done

    return embed


def cpu_s() -> float:
    """Return the processor seconds of all threads of this process and of its children that have ended."""
    return sum(os.times()[:4])


def peak_mib() -> float:
    """Return the largest resident set since this program began.

    Not `getrusage`: on Linux that begins with the size of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


CONTENDERS = {maker.__name__: maker for maker in (pocketlens, fastembed, fastembed_parallel, open_clip)}


def main() -> None:
    """Load, then make one pass for each line."""
    name, model, listed = sys.argv[1:]
    began = time.perf_counter()
    embed = CONTENDERS[name](model)
    paths = Path(listed).read_text().splitlines()
    embed(paths[:1])
    loaded_s = time.perf_counter() - began
    embed(paths[: min(len(paths), 16)])
    print(json.dumps({"loaded_s": loaded_s}), flush=True)
    for _ in sys.stdin:
        gc.collect()
        began, cpu_began = time.perf_counter(), cpu_s()
        done = embed(paths)
        spent_s, used_s = time.perf_counter() - began, cpu_s() - cpu_began
        assert done == len(paths)
        figures = {"images_per_s": done / spent_s, "cpu_ms": used_s * 1000 / done, "peak_mib": peak_mib()}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
