"""A bundle of a few kilobytes that is whole but whose graph no engine reads."""

from pathlib import Path

from pocketlens.core.bundle import (
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    TensorSpec,
    TokenizerSpec,
    tree_digest,
    write_bundle,
)
from pocketlens.core.preprocess import PreprocessSpec

GRAPH = "graphs/onnx-fp32/image_encoder.onnx"


def small_manifest(staged: Path, *, release: int = 0, name: str = "test") -> Manifest:
    """Return the manifest of the files that `stage` wrote."""
    graph = GraphRecord(
        role="image_encoder",
        target="onnx",
        precision="fp32",
        engine="onnxruntime",
        path=GRAPH,
        sha256=tree_digest(staged / GRAPH),
        bytes=(staged / GRAPH).stat().st_size,
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=(-1, 8, 8, 3)),),
        outputs=(TensorSpec(name="embedding", dtype="float32", shape=(-1, 4)),),
    )
    return Manifest(
        name=name,
        model_version="test-1",
        release=release,
        tasks=("embed",),
        embedding=EmbeddingSpec(dim=4),
        preprocess=PreprocessSpec(height_px=8, width_px=8),
        tokenizer=TokenizerSpec(vocab_size=10, text_length=8, pad_id=0, bos_id=1, eos_id=2),
        caption=None,
        graphs=(graph,),
        licence="Apache-2.0",
        provenance={},
    )


def stage(folder: Path) -> Path:
    """Write graph and tokenizer to `folder` and return it."""
    (folder / GRAPH).parent.mkdir(parents=True)
    (folder / GRAPH).write_bytes(b"graph bytes")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def small_bundle(root: Path, *, release: int = 0, name: str = "test", extra: "dict[str, bytes] | None" = None) -> Path:
    """Write a bundle to `root`, with `extra` files by name, and return its path."""
    staged = stage(root.with_name(f"{root.name}.staged"))
    for file, data in (extra or {}).items():
        (staged / file).parent.mkdir(parents=True, exist_ok=True)
        (staged / file).write_bytes(data)
    return write_bundle(root, small_manifest(staged, release=release, name=name), staged).root


Tree = dict[str, bytes | None]


def tree(folder: Path) -> Tree:
    """Return everything below `folder`: the bytes of files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def written(folder: Path, data: bytes) -> Path:
    """Write an archive beside `folder` and return its path."""
    path = folder.with_name("hostile.zip")
    path.write_bytes(data)
    return path
