"""Wrong normalisations, as the pixels that make a right image tower see what a wrong one would see."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["wrong_normalisations"]

Floats = NDArray[np.float64]

# torchvision's ImageNet statistics; OpenAI CLIP's (Radford et al. 2021, preprocessing of the released
# models); the [-1, 1] of Inception and SigLIP; none at all.
_PUBLISHED: Final = {
    "mean and standard deviation of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean and standard deviation of CLIP": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "mean 0.5 and standard deviation 0.5 (levels in -1..1)": ((0.5,) * 3, (0.5,) * 3),
    "no mean and no standard deviation (levels in 0..1)": ((0.0,) * 3, (1.0,) * 3),
}


def wrong_normalisations(
    pixels: NDArray[np.uint8], *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, NDArray[np.float32]]:
    """Return, by what is wrong, levels float32 (N, H, W, 3) to hand to a tower that normalises rightly.

    The tower computes (p / 255 - mean) / std. For a wrong value w in its place, p = 255 (mean + std w)
    makes it see w. Variants that the right one is equal to are left out.

    Args:
        pixels: uint8 (N, H, W, 3).
        mean: three, of levels in 0..1.
        std: three.
    """
    m, s = np.array(mean, dtype=np.float64), np.array(std, dtype=np.float64)
    unit = pixels / 255.0
    seen: dict[str, Floats] = {
        name: (unit - np.array(other)) / np.array(spread) for name, (other, spread) in _PUBLISHED.items()
    }
    right = (unit - m) / s
    variants: dict[str, Callable[[], Floats]] = {
        "no mean subtracted": lambda: unit / s,
        "no division by the standard deviation": lambda: unit - m,
        "multiplied by the standard deviation instead of divided": lambda: (unit - m) * s,
        "levels in 0..255 not divided by 255": lambda: (pixels - m) / s,
        "no normalisation at all (levels in 0..255)": lambda: pixels.astype(np.float64),
        "normalised twice": lambda: (right - m) / s,
        "levels divided by 255 before the graph, which divides them again": lambda: (unit / 255.0 - m) / s,
        "channels in the order B, G, R": lambda: right[..., ::-1],
        "mean and standard deviation in the order B, G, R": lambda: (unit - m[::-1]) / s[::-1],
        "variance in place of the standard deviation": lambda: (unit - m) / s**2,
    }
    seen |= {name: compute() for name, compute in variants.items()}
    return {
        name: (255.0 * (m + s * value)).astype(np.float32) for name, value in seen.items() if not _close(value, right)
    }


def _close(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(np.allclose(a, b, atol=1e-6))
