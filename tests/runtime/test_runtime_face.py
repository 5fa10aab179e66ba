"""The package face: what it exports and what importing it costs."""

import subprocess
import sys

import pytest

from pocketlens import runtime


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there() -> None:
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = runtime.nonsense


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = "import sys, pocketlens.runtime; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    heavy = {"torch", "onnxruntime", "numpy", "PIL", "apsw", "tokenizers", "executorch", "msgspec"}
    assert not heavy & set(_run(code).split())


def test_the_runtime_works_where_torch_cannot_be_imported(bundle_path: object, folder: object) -> None:
    code = f"""
import sys
for name in ("torch", "torchvision", "transformers", "executorch"):
    sys.modules[name] = None
from pocketlens.runtime import Store, index_folder, load
lens = load({str(bundle_path)!r}, threads=1)
store = Store.open({str(folder)!r} + "/store.db", model_version=lens.model_version, dim=lens.dim)
print(index_folder(lens, store, {str(folder)!r}).added)
print(len(store.search(lens.embed_text("red"), k=3)))
"""
    assert _run(code).split() == ["40", "3"]
