"""Large JPEG files decoded in full, scaled by libjpeg, and by other decoders: milliseconds, cosine and R@1.

    python -m benchmarks.scaled_decoding --bundle BUNDLE --data WORK/data [--pictures 200] [--peers PYTHON]

The quality is that of the worst case that each rule allows: the scenes of the test split are enlarged, and given grain,
so that the file is divided by 8 and the result has just OVERSAMPLING times the target's side. Of a larger picture more
is left. The bundle and the data are those of a finished demo or training run on scenes. `--peers` names a Python with
simplejpeg and pyvips for the table of decoders.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.photographs import photograph
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.distill.scenes.dataset import read_split
from pocketlens.runtime import Lens, load

_OVERSAMPLING: Final = (1, 1.5, 2)
_DIVISOR: Final = 8
_GRAIN: Final = 6.0

_PEERS: Final = """
import statistics, sys, time
data = [open(path, "rb").read() for path in sys.argv[1:]]
def simplejpeg_full(one):
    import simplejpeg
    simplejpeg.decode_jpeg(one)
def simplejpeg_eighth(one):
    import simplejpeg
    simplejpeg.decode_jpeg(one, min_height=375, min_width=375, min_factor=1)
def pyvips_thumbnail(one):
    import pyvips
    pyvips.Image.thumbnail_buffer(one, 224, height=224, crop="centre").write_to_memory()
for work in (simplejpeg_full, simplejpeg_eighth, pyvips_thumbnail):
    try:
        work(data[0])
    except ImportError as error:
        print(f"{work.__name__:<34}{error}")
        continue
    times = []
    for _ in range(5):
        for one in data:
            began = time.process_time()
            work(one)
            times.append((time.process_time() - began) * 1000)
    print(f"{work.__name__:<34}{statistics.median(times):>9.1f}")
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--peers", default=sys.executable)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        _decoders(options.peers, Path(scratch))
        if options.bundle and options.data:
            _quality(options.bundle, options.data, options.pictures)
    return 0


def _decoders(peers: str, scratch: Path) -> None:
    paths = []
    for seed in range(3):
        path = scratch / f"{seed}.jpg"
        path.write_bytes(photograph(seed, 4000, 3000))
        paths.append(path)
    data = [path.read_bytes() for path in paths]
    full = PreprocessSpec(height_px=224, width_px=224)
    ways: dict[str, Callable[[bytes], object]] = {
        f"Pillow, load at 1/{divisor}": lambda one, divisor=divisor: _load(one, divisor)  # type: ignore[misc]
        for divisor in (1, 2, 4, 8)
    }
    ways["preprocess, in full"] = lambda one: preprocess(one, full)
    scaled = msgspec.structs.replace(full, jpeg_scaling="dct")
    ways["preprocess, scaled by the rule"] = lambda one: preprocess(one, scaled)
    print(f"{'4000 x 3000 JPEG, one thread':<34}{'CPU ms':>9}")
    for name, way in ways.items():
        way(data[0])
        print(f"{name:<34}{statistics.median(_ms(way, one) for _ in range(5) for one in data):>9.1f}")
    subprocess.run([peers, "-c", _PEERS, *map(str, paths)], check=True)


def _load(data: bytes, divisor: int) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (image.width // divisor, image.height // divisor))  # type: ignore[arg-type]
        image.load()


def _ms(way: Callable[[bytes], object], one: bytes) -> float:
    began = time.process_time()
    way(one)
    return (time.process_time() - began) * 1000


def _quality(bundle: Path, data: Path, count: int) -> None:
    lens = load(bundle, precision="fp32")
    spec = lens.bundle.manifest.preprocess
    target = max(spec.height_px, spec.width_px)
    samples = read_split(data, "test")[:count]
    captions = [sample.captions[0] for sample in samples]
    texts = lens.embed_texts(captions)
    print(f"\n{len(samples)} scenes, input {target} px, each file divided by {_DIVISOR}: the worst case of each rule")
    print(f"{'OVERSAMPLING':<14}{'side px':>8}{'cosine mean':>13}{'min':>9}{'R@1 full i>t t>i':>20}{'R@1 scaled':>16}")
    for oversampling in _OVERSAMPLING:
        side = int(target * oversampling * _DIVISOR)
        files = [_enlarged(data / sample.image, side, number) for number, sample in enumerate(samples)]
        full = _embed(lens, files, 1)
        scaled = _embed(lens, files, _DIVISOR)
        cosine = (full * scaled).sum(1)
        ranks = [f"{_r1(a, texts):.3f} {_r1(texts, a):.3f}" for a in (full, scaled)]
        print(f"{oversampling:<14}{side:>8}{cosine.mean():>13.5f}{cosine.min():>9.5f}{ranks[0]:>20}{ranks[1]:>16}")


def _enlarged(picture: Path, side: int, seed: int) -> bytes:
    """Return a JPEG file of `side` x `side` pixels: the picture enlarged, with the grain of a sensor at that size."""
    with Image.open(picture) as image:
        large = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = np.random.default_rng(seed).normal(0, _GRAIN, (side, side, 1)).round().astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _embed(lens: Lens, files: Sequence[bytes], divisor: int) -> NDArray[np.float32]:
    spec = lens.bundle.manifest.preprocess
    pixels = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            if divisor > 1:
                image.draft(None, (image.width // divisor, image.height // divisor))  # type: ignore[arg-type]
            pixels.append(preprocess(np.asarray(image.convert("RGB")), spec))
    return np.stack([vector for vector in lens.embed_images(pixels) if isinstance(vector, np.ndarray)])


def _r1(queries: NDArray[np.float32], items: NDArray[np.float32]) -> float:
    return float(((queries @ items.T).argmax(1) == np.arange(len(queries))).mean())


if __name__ == "__main__":
    raise SystemExit(main())
