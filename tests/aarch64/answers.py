"""Writes what the installed pocketlens makes of a bundle's golden inputs, and of more pictures, on this machine.

    python answers.py BUNDLE OUT.npz [PICTURE ...]

For each variant that ONNX Runtime runs: `<variant>/golden` and `<variant>/text`, embeddings (N, D) of the golden pixels
and texts; `<variant>/pictures`, embeddings of the further pictures; `<variant>/golden_captions` and
`<variant>/picture_captions`, greedy caption ids (N, longest), ended by -1. Needs no torch.
"""

import sys
from pathlib import Path

import numpy as np

from pocketlens.core.bundle import GraphRecord, Role, load_bundle
from pocketlens.core.golden import read_golden
from pocketlens.core.preprocess import preprocess
from pocketlens.export.parity import greedy_captions
from pocketlens.runtime.engines import Engine, open_engine

_BATCH = 16


def main(bundle_path: str, out: str, *pictures: str) -> None:
    bundle = load_bundle(Path(bundle_path))
    manifest = bundle.manifest
    golden = read_golden(bundle.root)
    inputs = {"golden": golden.pixels}
    if pictures:
        inputs["pictures"] = np.stack([preprocess(Path(picture), manifest.preprocess) for picture in pictures])
    ids = golden.text_ids
    variants: dict[str, dict[Role, GraphRecord]] = {}
    for record in manifest.graphs:
        if record.engine == "onnxruntime":
            variants.setdefault(f"{record.target}-{record.precision}", {})[record.role] = record
    answers = {}
    for variant, graphs in variants.items():
        engine = open_engine("onnxruntime", bundle, graphs, threads=1)
        answers[f"{variant}/text"] = engine.run("text_encoder", {"ids": ids})["embedding"]
        for name, pixels in inputs.items():
            embeddings, visual = _encode(engine, pixels)
            answers[f"{variant}/{name}"] = embeddings
            if manifest.caption is not None:
                captions = greedy_captions(engine, visual, tokenizer=manifest.tokenizer, caption=manifest.caption)
                key = f"{variant}/{name.removesuffix('s')}_captions"
                answers[key] = _padded(captions)
    np.savez(out, **answers)


def _encode(engine: Engine, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = [engine.run("image_encoder", {"pixels": pixels[i : i + _BATCH]}) for i in range(0, len(pixels), _BATCH)]
    return (
        np.concatenate([part["embedding"] for part in found]),
        np.concatenate([part["visual_tokens"] for part in found]),
    )


def _padded(captions: list[list[int]]) -> np.ndarray:
    table = np.full((len(captions), max(map(len, captions)) + 1), -1, dtype=np.int32)
    for row, ids in zip(table, captions, strict=True):
        row[: len(ids)] = ids
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
