"""What `write_device_kit` puts into a bundle, and that it holds a build to the same bits."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketlens.core.bundle import Bundle, CaptionSpec, TokenizerSpec, load_bundle, write_bundle
from pocketlens.core.errors import BundleSchemaError, ExportError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.export.device_kit import DEVICE_KIT_FOLDER, write_device_kit
from pocketlens.export.device_kit.config import c_string
from pocketlens.export.device_kit.tokenizer_file import tokenizer_bin
from tests.device_kit.cases import TEXT_LENGTH, trained_tokenizer
from tests.device_kit.toolchain import build

FILES = {
    "README.md",
    "android/CMakeLists.txt",
    "android/PocketLensKit.kt",
    "android/pocketlens_jni.c",
    "pocketlens_config.h",
    "pocketlens_golden.h",
    "pocketlens_kit.c",
    "pocketlens_normalizer.h",
    "pocketlens_preprocess.h",
    "pocketlens_selftest.c",
    "pocketlens_tokenizer.h",
    "pocketlens_unicode.h",
    "swift/PocketLensKit.swift",
    "swift/module.modulemap",
    "tokenizer.bin",
}
SPEC = PreprocessSpec(height_px=48, width_px=64, fit="pad", filter="bilinear", matte=(1, 2, 3), pad_colour=(4, 5, 6))


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_tokenizer(tmp_path_factory.mktemp("tokenizer"))[1]


def record(path: Path) -> TokenizerSpec:
    size = len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])
    return TokenizerSpec(vocab_size=size, text_length=TEXT_LENGTH, pad_id=0, bos_id=1, eos_id=2)


def write(folder: Path, path: Path, spec: PreprocessSpec = SPEC, **options: Any) -> Path:
    facts = {"name": "tiny", "model_version": "0123", **options}
    return write_device_kit(folder, preprocess=spec, tokenizer_json=path, tokenizer=record(path), **facts)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def self_test(kit: Path, out: Path) -> subprocess.CompletedProcess[str]:
    built = build("gcc", kit / "pocketlens_selftest.c", out, "-O2", include=[kit])
    return subprocess.run([str(built), str(kit / "tokenizer.bin")], capture_output=True, text=True, check=False)


def test_holds_every_file_and_the_same_bytes_each_time(tokenizer_json: Path, tmp_path: Path) -> None:
    first = files(write(tmp_path / "a", tokenizer_json))
    assert set(first) == FILES
    assert files(write(tmp_path / "b", tokenizer_json)) == first


def test_a_bundle_with_a_kit_is_a_closed_world(bundle: Bundle, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(bundle.root, staged)
    shutil.rmtree(staged / DEVICE_KIT_FOLDER, ignore_errors=True)
    manifest = bundle.manifest
    kit = write_device_kit(
        staged,
        name=manifest.name,
        model_version=manifest.model_version,
        preprocess=manifest.preprocess,
        tokenizer_json=bundle.tokenizer_path,
        tokenizer=manifest.tokenizer,
        caption=manifest.caption,
        texts=["a red cup"],
    )
    assert self_test(kit, tmp_path / "selftest").returncode == 0
    written = write_bundle(tmp_path / "out", manifest, staged)
    assert load_bundle(written.root).manifest == manifest
    assert f"  {DEVICE_KIT_FOLDER}/tokenizer.bin\n" in (written.root / "SHA256SUMS").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        PreprocessSpec(height_px=31, width_px=31),
        PreprocessSpec(height_px=1, width_px=200, fit="squash", max_pixels=700_000, max_aspect=2),
    ],
)
def test_the_self_test_passes(tokenizer_json: Path, tmp_path: Path, spec: PreprocessSpec) -> None:
    done = self_test(write(tmp_path, tokenizer_json, spec, texts=["one more"]), tmp_path / "selftest")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" texts, 0 differ\n")


@pytest.mark.parametrize(
    ("file", "before", "after", "complaint"),
    [
        ("pocketlens_preprocess.h", "const double a = -0.5;", "const double a = -0.75;", "picture"),
        ("pocketlens_preprocess.h", "    case 6:", "    case 16:", "orientation 6"),
        ("pocketlens_config.h", "#define PL_CONFIG_HEIGHT 31", "#define PL_CONFIG_HEIGHT 32", "picture"),
        ("pocketlens_normalizer.h", "code - 'A' < 26u", "code - 'A' < 2u", "text 3: differs"),
        ("pocketlens_normalizer.h", "- 0x11A8u < 27u", "- 0x11A8u < 7u", None),
    ],
)
def test_the_self_test_notices_a_changed_port(
    tokenizer_json: Path, tmp_path: Path, file: str, before: str, after: str, complaint: str | None
) -> None:
    kit = write(tmp_path, tokenizer_json, PreprocessSpec(height_px=31, width_px=31))
    text = (kit / file).read_text(encoding="utf-8")
    assert text.count(before) == 1
    (kit / file).write_text(text.replace(before, after), encoding="utf-8")
    done = self_test(kit, tmp_path / "selftest")
    if complaint is None:  # no golden text has such a syllable: the 10,000 strings do
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert complaint in done.stdout


def test_the_self_test_refuses_another_tokenizer(tokenizer_json: Path, tmp_path: Path) -> None:
    kit = write(tmp_path, tokenizer_json)
    flat = kit / "tokenizer.bin"
    flat.write_bytes(flat.read_bytes()[:-1])
    done = self_test(kit, tmp_path / "selftest")
    assert done.returncode == 1
    assert "tokenizer.bin: refused" in done.stdout


def test_the_kit_compiles_as_one_file_in_c_and_cpp(tokenizer_json: Path, tmp_path: Path) -> None:
    kit = write(tmp_path, tokenizer_json)
    build("gcc", kit / "pocketlens_kit.c", tmp_path / "c.o", "-c", "-Wshadow", include=[kit])
    text = (kit / "pocketlens_kit.c").read_text(encoding="utf-8")
    cpp = kit / "kit.cpp"
    cpp.write_text(text, encoding="utf-8")
    build("g++", cpp, tmp_path / "cpp.o", "-c", "-std=c++17", include=[kit])


def test_fast_math_is_refused_at_compile_time(tokenizer_json: Path, tmp_path: Path) -> None:
    kit = write(tmp_path, tokenizer_json)
    with pytest.raises(AssertionError, match="-ffast-math reorders"):
        build("gcc", kit / "pocketlens_kit.c", tmp_path / "kit.o", "-c", "-ffast-math", include=[kit])


def test_the_config_says_what_the_manifest_says(tokenizer_json: Path, tmp_path: Path) -> None:
    kit = write(tmp_path, tokenizer_json, caption=CaptionSpec(prefix_length=16, max_tokens=24))
    lines = (kit / "pocketlens_config.h").read_text(encoding="utf-8").splitlines()
    for line in (
        '#define PL_CONFIG_MODEL_VERSION "0123"',
        "#define PL_CONFIG_HEIGHT 48",
        "    { PL_CONFIG_HEIGHT, PL_CONFIG_WIDTH, PL_PAD, PL_BILINEAR, \\",
        "      { 1, 2, 3 }, { 4, 5, 6 }, 64000000, 100 }",
        f"#define PL_CONFIG_TEXT_LENGTH {TEXT_LENGTH}",
        "#define PL_CONFIG_CAPTION_PREFIX 16",
        "#define PL_CONFIG_CAPTION_TOKENS 24",
    ):
        assert line in lines


def test_no_name_breaks_out_of_its_string(tokenizer_json: Path, tmp_path: Path) -> None:
    name = 'a"; int x; /*\n\\ é ??/'
    assert c_string('"\\\n1é') == r'"\042\134\0121\303\251"'
    done = self_test(write(tmp_path, tokenizer_json, name=name), tmp_path / "selftest")
    assert done.stdout.startswith(f"{name} 0123: ")


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], Path]:
    def apply(path: Path, folder: Path) -> Path:
        document = json.loads(path.read_text(encoding="utf-8"))
        change(document)
        out = folder / "tokenizer.json"
        out.write_text(json.dumps(document), encoding="utf-8")
        return out

    return apply


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda d: d["normalizer"].update(normalizers=[{"type": "NFKC"}]), "NFKC"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda d: d.update(pre_tokenizer=None), "none"),
        (lambda d: d.update(decoder={"type": "WordPiece"}), "WordPiece"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "256 missing, the first"),
        (lambda d: d["model"].update(dropout=0.1), "0.1"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "<pad>"),
        (lambda d: d["model"]["vocab"].pop("!"), "1 missing"),
    ],
)
def test_a_tokenizer_that_the_header_does_not_implement_is_refused(
    tokenizer_json: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], found: str
) -> None:
    path = changed(change)(tokenizer_json, tmp_path)
    with pytest.raises(ExportError) as caught:
        tokenizer_bin(path, record(tokenizer_json))
    assert found in caught.value.found


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": "2.0"}', b"\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(tokenizer_json: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleSchemaError):
        tokenizer_bin(path, record(tokenizer_json))


def test_a_merge_of_unknown_tokens_is_refused(tokenizer_json: Path, tmp_path: Path) -> None:
    path = changed(lambda d: d["model"]["merges"].append(["not", "there"]))(tokenizer_json, tmp_path)
    with pytest.raises(BundleSchemaError) as caught:
        tokenizer_bin(path, record(tokenizer_json))
    assert "('not', 'there')" in caught.value.found


def test_the_flat_file_has_the_documented_layout(tokenizer_json: Path) -> None:
    spec = record(tokenizer_json)
    data = tokenizer_bin(tokenizer_json, spec)
    numbers = memoryview(data[: len(data) // 4 * 4]).cast("I")
    model = msgspec.json.decode(tokenizer_json.read_bytes())["model"]
    assert data[:4] == b"PLTK"
    merges, steps = len(model["merges"]), 2 * 4  # NFC and lower case, without sets of code points
    assert list(numbers[1:8]) == [2, 0, 1, 1, spec.vocab_size, merges, 4]
    assert list(numbers[9:20]) == [TEXT_LENGTH, 0, 1, 2, 0, steps, 0, 0, 0, 0, 0]
    assert list(numbers[20:28]) == [1, 0, 0, 0, 3, 0, 0, 0]
    sections = 80 + 4 * (steps + 256 + 2 * (spec.vocab_size + 1) + 4) + 12 * merges
    assert len(data) == sections + numbers[8]
    starts = numbers[28 + 256 :]
    tokens = [data[sections + starts[n] : sections + starts[n + 1]] for n in range(spec.vocab_size)]
    assert tokens[:4] == [b"<pad>", b"<bos>", b"<eos>", b"<unk>"]
    assert b" cat" in tokens
    assert {tokens[numbers[28 + byte]] for byte in range(256)} == {bytes([byte]) for byte in range(256)}
