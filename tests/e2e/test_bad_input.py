"""Broken input: one typed error, the documented exit code, and nothing lost that was done."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketlens.cli import main
from tests.e2e.conftest import BAD_FILES, Ended, Run, png

SMALL_DISK = Path(__file__).with_name("small_disk.py")


# Pictures


def test_each_bad_picture_gets_one_typed_error(bundle: Path, bad_files: dict[Path, str], run: Run) -> None:
    for path, kind in bad_files.items():
        for command in ("caption", "embed"):
            sentence = run(command, path, "-b", bundle).refuses("PictureError", 3)
            assert str(path) in sentence
            as_json = run(command, path, "-b", bundle, "--json")
            assert (as_json.code, as_json.out) == (3, "")
            record = json.loads(as_json.err)
            assert record["kind"] == kind, record
            assert (record["error"], record["what"], record["exit_code"]) == ("PictureError", str(path), 3)
            assert all(record[field] for field in ("expected", "found", "remedy"))


def test_the_bomb_is_a_small_file_that_is_refused_before_it_unfolds(
    bundle: Path, bad_files: dict[Path, str], run: Run
) -> None:
    bomb = next(path for path in bad_files if path.name == "bomb.png")
    assert bomb.stat().st_size < 50_000
    assert "16000 x 16000 = 256,000,000 pixels" in run("caption", bomb, "-b", bundle).err


def test_fifty_bad_files_of_a_thousand_cost_nothing_but_themselves(
    bundle: Path, bad_files: dict[Path, str], tmp_path: Path, run: Run
) -> None:
    contents = [png(number) for number in range(20)]
    kinds = list(bad_files.items())
    files: list[Path] = []
    for number in range(1000):
        path = tmp_path / f"{number:04}.jpg"
        if number % 20 == 7:
            bad, _ = kinds[number // 20 % len(kinds)]
            if bad.is_dir():
                path.mkdir()
            elif bad.exists():
                shutil.copyfile(bad, path)
        else:
            path.write_bytes(contents[number % 20])
        files.append(path)
    bad_ones = files[7::20]
    good_ones = [file for file in files if file not in set(bad_ones)]

    ended = run("caption", *files, "-b", bundle, "--threads", 1)
    assert ended.code == 1
    assert [line.split("\t")[0] for line in ended.lines] == [str(file) for file in good_ones]
    *listed, summary = ended.told
    assert summary == "950 of 1000 pictures done, 50 refused"
    assert len(listed) == 50
    for number, (line, file) in enumerate(zip(listed, bad_ones, strict=True)):
        assert line.startswith(f"refused {kinds[number % len(kinds)][1]}: {file}: expected ")


def test_bad_files_of_a_batch_are_json_on_stderr_too(bundle: Path, bad_files: dict[Path, str], run: Run) -> None:
    for command in ("caption", "embed"):
        ended = run(command, *bad_files, "-b", bundle, "--json")
        assert (ended.code, ended.out) == (1, "")
        records = [json.loads(line) for line in ended.err.splitlines()]
        assert {record["file"]: record["kind"] for record in records} == {str(p): k for p, k in bad_files.items()}


def test_index_lists_bad_files_and_indexes_the_others(
    bundle: Path, bad_files: dict[Path, str], folder: Path, run: Run
) -> None:
    for path in bad_files:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    ended = run("index", folder, "-b", bundle)
    assert ended.code == 1
    assert ended.out.startswith(f"20 added, 0 unchanged, 0 removed, {len(BAD_FILES)} refused")
    assert len(ended.told) == len(BAD_FILES)
    [record] = run("index", folder, "-b", bundle, "--json").records
    assert {Path(r["path"]).name: r["kind"] for r in record["refused"]} == {n: k for n, (k, _) in BAD_FILES.items()}
    assert record["unchanged"] == 20


def test_a_folder_that_is_none_is_refused(bundle: Path, folder: Path, tmp_path: Path, run: Run) -> None:
    assert "nothing at that path" in run("index", tmp_path / "nowhere", "-b", bundle).refuses("PictureError", 3)
    assert "a file" in run("index", folder / "00.png", "-b", bundle).refuses("PictureError", 3)


# Bundles


def _flip_one_bit(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return damage


def _seal(root: Path) -> None:
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root).as_posix()}\n" for p in files]
    (root / "SHA256SUMS").write_text("".join(lines))


def _manifest(**fields: object) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        _seal(root)

    return damage


def _lose(name: str, *, sealed: bool) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / name).unlink()
        if sealed:
            _seal(root)

    return damage


GRAPH = "graphs/onnx-fp32/image_encoder.onnx"
DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "bit in a graph": (_flip_one_bit(GRAPH), "BundleTampered", "SHA-256"),
    "bit in the manifest": (_flip_one_bit("manifest.json"), "BundleTampered", "SHA-256"),
    "bit in the tokenizer": (_flip_one_bit("tokenizer.json"), "BundleTampered", "SHA-256"),
    "bit in the sums": (_flip_one_bit("SHA256SUMS"), "Bundle", ""),
    "missing graph": (_lose(GRAPH, sealed=False), "BundleMissing", "image_encoder.onnx"),
    "missing graph, sealed": (_lose(GRAPH, sealed=True), "BundleMissing", "image_encoder"),
    "missing manifest": (_lose("manifest.json", sealed=False), "BundleMissing", "manifest.json"),
    "missing sums": (_lose("SHA256SUMS", sealed=False), "BundleMissing", "SHA256SUMS"),
    "extra file": (lambda root: (root / "extra.txt").write_text("hello"), "BundleTampered", "extra.txt"),
    "link": (lambda root: (root / "link").symlink_to("manifest.json"), "BundleTampered", "link"),
    "newer schema": (_manifest(schema_version=99), "BundleSchemaError", "99"),
    "unknown field": (_manifest(surprise=1), "BundleSchemaError", "surprise"),
    "schema of words": (_manifest(schema_version="new"), "BundleSchemaError", "schema"),
    "not even JSON": (lambda root: ((root / "manifest.json").write_bytes(b"\xff{"), _seal(root)), "BundleSchema", ""),
    "no folder": (shutil.rmtree, "BundleMissing", "nothing at that path"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_command_refuses_a_damaged_bundle_and_the_store_stays(
    name: str, bundle: Path, damaged: Path, folder: Path, run: Run
) -> None:
    damage, error, said = DAMAGES[name]
    assert run("index", folder, "-b", bundle).code == 0
    store = folder.parent / "pocketlens.sqlite"
    before = store.read_bytes()
    (folder / "new.png").write_bytes(png(800))
    damage(damaged)
    for arguments in (
        ("caption", folder / "00.png", "-b", damaged),
        ("embed", folder / "00.png", "-b", damaged),
        ("index", folder, "-b", damaged),
        ("search", "a", "-b", damaged, "--store", store),
        ("inspect", damaged),
        ("serve", "--bundle", damaged, "--port", "0"),
    ):
        ended = run(*arguments)
        actual = ended.err.split(" ", 1)[0]
        assert actual.startswith(error)
        assert said in ended.refuses(actual, 4)
    assert store.read_bytes() == before
    assert len(run("search", "a", "-b", bundle, "--store", store, "-k", 100).lines) == 20


def test_an_error_in_json_is_one_line_on_stderr(bundle: Path, tmp_path: Path, folder: Path, run: Run) -> None:
    for ended, error, code in (
        (run("inspect", tmp_path / "none", "--json"), "BundleMissing", 4),
        (run("search", "a", "-b", bundle, "--store", tmp_path / "none", "--json"), "StoreError", 11),
        (run("caption", folder / "00.png", "-b", bundle, "--consent", "--json"), "CloudError", 13),
        (run("distill", "train", tmp_path / "none.toml", "-w", tmp_path / "w", "--json"), "RecipeError", 5),
    ):
        assert (ended.code, ended.out) == (code, "")
        [line] = ended.err.splitlines()
        record = json.loads(line)
        assert record.keys() == {"error", "what", "expected", "found", "remedy", "exit_code"}
        assert (record["error"], record["exit_code"]) == (error, code)


# Stores


def test_a_store_that_is_none_or_of_another_model_is_refused_and_left_alone(
    bundle: Path, damaged: Path, folder: Path, tmp_path: Path, run: Run
) -> None:
    _manifest(model_version="other-1")(damaged)
    run("index", folder, "-b", bundle, "--store", tmp_path / "good.sqlite")
    (tmp_path / "text.sqlite").write_text("shopping list: " + "eggs, " * 500)
    for name, used, said in (
        ("good.sqlite", damaged, "tiny-3"),
        ("text.sqlite", bundle, "database"),
    ):
        store = tmp_path / name
        before = store.read_bytes()
        assert said in run("index", folder, "-b", used, "--store", store).refuses("StoreError", 11)
        assert said in run("search", "a", "-b", used, "--store", store).refuses("StoreError", 11)
        assert store.read_bytes() == before
    nowhere = tmp_path / "no" / "such" / "store.sqlite"
    run("index", folder, "-b", bundle, "--store", nowhere).refuses("StoreError", 11)
    assert "nothing at that path" in run("search", "a", "-b", bundle, "--store", nowhere).refuses("StoreError", 11)
    run("search", "  ", "-b", bundle, "--store", tmp_path / "good.sqlite").refuses("StoreError", 11)


# No space


def _ways() -> list[tuple[str, list[str]]]:
    """How a small disk may be had here, best first: the last one works everywhere."""
    namespace = ["unshare", "--mount"]
    return [("mount", namespace), ("mount", ["unshare", "--user", "--map-root-user", "--mount"]), ("limit", [])]


def _can_mount(prefix: list[str], folder: Path) -> bool:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    return subprocess.run([*prefix, *mount], capture_output=True, check=False).returncode == 0


def test_a_full_disk_is_one_error_and_indexing_goes_on_when_there_is_room(bundle: Path, tmp_path: Path) -> None:
    pictures, disk = tmp_path / "pictures", tmp_path / "disk"
    (pictures / "first").mkdir(parents=True)
    disk.mkdir()
    contents = [png(number) for number in range(20)]
    for number in range(216):
        folder = pictures / "first" if number < 16 else pictures
        (folder / f"{number}.png").write_bytes(contents[number % 20])
    way, prefix = next((w, p) for w, p in _ways() if w == "limit" or _can_mount(p, disk))
    command = [*prefix, sys.executable, str(SMALL_DISK), way, str(bundle), str(pictures), str(disk)]
    story = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    before, full, kept, after = (Ended(**story[part]) for part in ("before", "full", "kept", "after"))

    assert (before.code, before.records[0]["added"]) == (0, 16)
    # A file that must not grow is no full disk: SQLite calls it an I/O error.
    error, code = ("StorageFull", 12) if way == "mount" else ("StoreError", 11)
    assert (full.code, full.out) == (code, "")
    [line] = full.told
    record = json.loads(line)
    assert (record["error"], record["exit_code"]) == (error, code)
    assert all(record[field] for field in ("what", "expected", "found", "remedy"))
    done = len(kept.records)
    assert 16 <= done < 216
    assert kept.code == after.code == 0
    assert (after.records[0]["unchanged"], after.records[0]["added"]) == (done, 216 - done)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("as_json", [False, True])
def test_results_that_find_no_room_are_an_error_not_a_silence(
    as_json: bool, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = main(["inspect", str(bundle), *(["--json"] if as_json else [])])
        monkeypatch.undo()
    assert code == 12
    [line] = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["error"] if as_json else line.split(" ")[0]) == "StorageFull"


# Distillation

RECIPE = """
name = "test"
threads = 1
[data]
source = "scenes"
train = 4
val = 1
test = 1
train_px = 32
test_px = 32
[reinforce]
views = 1
shard = 4
[train]
steps = 2
batch = 2
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECIPE + "stepz = 3\n", "stepz"),
        (RECIPE + "[surprise]\nx = 1\n", "surprise"),
        (RECIPE.replace("steps = 2", 'steps = "two"'), "steps"),
        (RECIPE.replace("steps = 2", "steps = 0"), "steps"),
        (RECIPE.replace("train = 4\n", ""), "train"),
        (RECIPE + '[student]\npreset = "huge"\n', "huge"),
        ("name = [", "document"),
    ],
)
@pytest.mark.parametrize("command", [("distill", "train"), ("distill",)], ids=" ".join)
def test_a_wrong_recipe_is_refused_before_anything_is_made(
    command: tuple[str, ...], text: str, said: str, tmp_path: Path, run: Run
) -> None:
    recipe, work = tmp_path / "recipe.toml", tmp_path / "work"
    recipe.write_text(text)
    assert said in run(*command, recipe, "--work", work).refuses("RecipeError", 5)
    assert not work.exists()


def test_a_recipe_that_is_no_file_is_refused(tmp_path: Path, run: Run) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        assert str(path) in run("distill", "train", path, "--work", tmp_path / "work").refuses("RecipeError", 5)


def _teacher_missing(folder: Path) -> None:
    pass


def _teacher_file(folder: Path) -> None:
    folder.write_text("a teacher")


def _teacher_empty(folder: Path) -> None:
    folder.mkdir()


def _teacher_unreadable(folder: Path) -> None:
    folder.mkdir()
    (folder / "open_clip_config.json").mkdir()  # nobody can read this as a file, root included
    (folder / "open_clip_model.safetensors").write_bytes(b"noise" * 99)


def _teacher_card_unreadable(folder: Path) -> None:
    folder.mkdir()
    (folder / "teacher.json").write_text("{broken")


def _recipe_with(teacher: Path, path: Path) -> Path:
    path.write_text(RECIPE + f'[teachers]\nembedder = "{teacher}"\ncaptioner = "{teacher}"\n')
    return path


@pytest.mark.parametrize("make", [_teacher_missing, _teacher_file, _teacher_card_unreadable])
def test_a_teacher_that_is_none_is_told_before_anything_is_made(
    make: Callable[[Path], None], tmp_path: Path, run: Run
) -> None:
    teacher, work = tmp_path / "teacher", tmp_path / "work"
    make(teacher)
    recipe = _recipe_with(teacher, tmp_path / "recipe.toml")
    assert str(teacher) in run("distill", "train", recipe, "--work", work).refuses("TeacherError", 7)
    assert not work.exists()


def test_an_unreadable_teacher_is_one_error_and_the_data_stay(tmp_path: Path, run: Run) -> None:
    work, made = tmp_path / "work", {}
    for make in (_teacher_empty, _teacher_unreadable, _teacher_empty):
        teacher = tmp_path / "teacher"
        shutil.rmtree(teacher, ignore_errors=True)
        make(teacher)
        recipe = _recipe_with(teacher, tmp_path / "recipe.toml")
        assert str(teacher) in run("distill", "train", recipe, "--work", work).refuses("TeacherError", 7)
        pictures = {path: path.stat().st_mtime_ns for path in (work / "data").rglob("*.jpg")}
        assert len(pictures) == 6
        assert pictures == (made or pictures)
        made = pictures


@pytest.mark.parametrize("make", [_teacher_missing, _teacher_empty])
def test_serve_refuses_an_unreadable_teacher(make: Callable[[Path], None], tmp_path: Path, run: Run) -> None:
    make(tmp_path / "teacher")
    run("serve", "--teacher", tmp_path / "teacher", "--port", "0").refuses("TeacherError", 7)


def test_distilling_without_its_packages_names_the_extra(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("pocketlens.distill")]:
        monkeypatch.delitem(sys.modules, name)  # as in a process that has not imported them yet
    sentence = run("distill", "train", recipe, "--work", tmp_path / "work").refuses("TrainingError", 8)
    assert sentence.endswith('`pip install "pocketlens[distill]"`.')
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_typed_error_too(bundle: Path, damaged: Path, folder: Path, run: Run) -> None:
    (folder / "00.png").chmod(0)
    assert "ermission" in run("caption", folder / "00.png", "-b", bundle).refuses("PictureError", 3)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    recipe.chmod(0)
    assert "ermission" in run("distill", "train", recipe, "--work", folder / "work").refuses("RecipeError", 5)
    for path in (damaged / GRAPH, damaged):
        path.chmod(0)
        ended = run("caption", folder / "01.png", "-b", damaged)
        error = ended.err.split(" ")[0]
        assert "ermission" in ended.refuses(error, 4 if error.startswith("Bundle") else 6)
    damaged.chmod(0o700)
