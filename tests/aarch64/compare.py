"""Compares what two architectures made of one bundle, with each other and with the golden answers; a Markdown table.

    python compare.py BUNDLE HOST.npz CPU=EMULATED.npz ...

Ends with 1 where an fp32 variant strays from the golden answers: a cosine below 0.9999 or another caption.
"""

import sys
from pathlib import Path

import numpy as np

from pocketlens.core.bundle import load_bundle
from pocketlens.core.golden import read_golden
from pocketlens.export.parity import cosines

_FP32_COSINE = 0.9999


def main(bundle_path: str, host_path: str, *emulated: str) -> int:
    golden = read_golden(load_bundle(Path(bundle_path)).root)
    host = dict(np.load(host_path))
    machines = {"host": host}
    for entry in emulated:
        cpu, _, path = entry.partition("=")
        machines[cpu] = dict(np.load(path))
    rows, right = [], True
    for cpu, found in machines.items():
        for variant in sorted({key.split("/")[0] for key in found}):
            image = cosines(found[f"{variant}/golden"], golden.embeddings[: len(golden.pixels)])
            text = cosines(found[f"{variant}/text"], golden.text_embeddings)
            captions = _ids(found, f"{variant}/golden_captions")
            expected = [list(ids) for ids in golden.golden.caption_ids[: len(captions)]]
            equal = sum(a == b for a, b in zip(captions, expected, strict=True))
            row = [cpu, variant, _figures(image), _figures(text), f"{equal} of {len(expected)}"]
            rows.append(row + (_beside(host, found, variant) if found is not host else ["", "", ""]))
            if variant.endswith("fp32"):
                right &= bool(min(image.min(), text.min()) >= _FP32_COSINE) and equal == len(expected)
    head = ["CPU", "variant", "golden pictures", "golden texts", "golden captions"]
    head += ["pictures, against the host", "bits equal", "captions equal to the host's"]
    for line in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(line) + " |")
    return 0 if right else 1


def _beside(host: dict[str, np.ndarray], found: dict[str, np.ndarray], variant: str) -> list[str]:
    """Return the cells that compare the further pictures (or, without any, the golden ones) with the host."""
    name = "pictures" if f"{variant}/pictures" in host else "golden"
    ours, theirs = found[f"{variant}/{name}"], host[f"{variant}/{name}"]
    same = int(np.all(ours == theirs, axis=1).sum())
    key = f"{variant}/{name.removesuffix('s')}_captions"
    pairs = list(zip(_ids(found, key), _ids(host, key), strict=True))
    captions = sum(a == b for a, b in pairs)
    return [_figures(cosines(ours, theirs)), f"{same} of {len(ours)}", f"{captions} of {len(pairs)}"]


def _ids(answers: dict[str, np.ndarray], key: str) -> list[list[int]]:
    return [[int(value) for value in row if value >= 0] for row in answers[key]] if key in answers else []


def _figures(values: np.ndarray) -> str:
    return f"{values.min():.6f} / {values.mean():.6f}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
