#!/usr/bin/env bash
# Installs the built wheel alone (no extras, so no torch) and uses the bundle and pictures of a demo run with it.
#   bash tests/wheel.sh DIST_FOLDER DEMO_FOLDER
set -euo pipefail
dist=$(cd "$1" && pwd) demo=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --upgrade pip
"$work/venv/bin/python" -m pip install -q -c constraints.txt "$dist"/pocketlens-*.whl
cd "$work"   # away from the source tree: only the wheel can be imported
export POCKETLENS_BUNDLE="$demo/bundle"
"$work/venv/bin/python" - <<'PY'
import importlib.util, pathlib, sys, sysconfig
for heavy in ("torch", "torchvision", "transformers", "executorch"):
    assert importlib.util.find_spec(heavy) is None, heavy
import pocketlens
site = pathlib.Path(sysconfig.get_paths()["purelib"])
assert site in pathlib.Path(pocketlens.__file__).parents, pocketlens.__file__
from pocketlens.core.compiled import COMPILED
assert COMPILED, "the wheel was built without a C compiler, and so without pocketlens.core._preprocess"
size = sum(f.stat().st_size for f in site.rglob("*") if f.is_file())
tools = sum(f.stat().st_size for name in ("pip", "setuptools") for f in site.glob(f"{name}*/**/*") if f.is_file())
megabytes = (size - tools) / 1e6
print(f"core install: {megabytes:.1f} MB")
# The aim is 150; numpy, onnxruntime and Pillow alone take 164 (docs/LOG.md). This keeps it from growing.
assert megabytes < 275, "the core install grew"
PY
pictures=("$demo"/work/data/test/00000*.jpg)
run="$work/venv/bin/pocketlens"
"$run" verify "$demo/bundle"
"$run" inspect "$demo/bundle" > /dev/null
"$run" caption "${pictures[@]}" | tee captions.txt
[ "$(wc -l < captions.txt)" -eq "${#pictures[@]}" ]
"$run" index "$demo/work/data/test" --store "$work/store.sqlite"
"$run" search "two red balls on the grass" --store "$work/store.sqlite" -k 3 | tee found.txt
[ "$(wc -l < found.txt)" -eq 3 ]
echo "not a picture" > fake.jpg
code=0; "$run" caption fake.jpg || code=$?
[ "$code" -eq 3 ]
echo "wheel ok"
