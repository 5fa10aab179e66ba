"""What holds the house together: light imports, no torch below the line, everything public is listed."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

TORCH_FREE = ("core", "runtime", "telemetry", "cloud_fallback")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("part", TORCH_FREE)
def test_what_runs_on_a_device_imports_without_torch(part: str) -> None:
    code = f"""
import sys
for name in ("torch", "torchvision", "transformers"):
    sys.modules[name] = None
import importlib, pkgutil
import pocketlens.{part} as part
for module in pkgutil.walk_packages(part.__path__, part.__name__ + "."):
    importlib.import_module(module.name)
print("fine")
"""
    assert _run(code) == "fine\n"


def test_importing_pocketlens_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'PIL', 'onnxruntime', 'torch', 'msgspec', 'typer', 'apsw', 'tokenizers', 'rich'}"
    assert _run(f"import sys, pocketlens; print(sorted({heavy} & set(sys.modules)))") == "[]\n"


def test_onnxruntime_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    code = "import pocketlens, onnxruntime as ort, onnx, onnx.helper as h; " + (
        "v = [h.make_tensor_value_info(n, 1, [1]) for n in 'xy']; "
        "g = h.make_graph([h.make_node('Identity', ['x'], ['y'])], 'g', v[:1], v[1:]); "
        "m = h.make_model(g, opset_imports=[h.make_opsetid('', 18)], ir_version=9); "
        "ort.InferenceSession(m.SerializeToString()); print('opened')"
    )

    environment = {k: v for k, v in os.environ.items() if k not in {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "opened\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _modules() -> list[str]:
    import pocketlens

    return [
        m.name for m in pkgutil.walk_packages(pocketlens.__path__, "pocketlens.") if not m.name.endswith("__main__")
    ]


@pytest.mark.parametrize("name", _modules())
def test_every_public_name_exists_and_every_module_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or not getattr(module, "__all__", None), f"{name} has no docstring"
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), f"{name}.__all__ lists {public}"


def test_the_face_offers_what_the_readme_says() -> None:
    import pocketlens

    assert set(pocketlens.__all__) == {"Caption", "Lens", "PocketlensError", "__version__", "load"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pocketlens.nothing
