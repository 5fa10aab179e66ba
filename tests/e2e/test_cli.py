"""The command line as its user meets it: what goes to stdout and stderr, and how commands end."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import numpy as np
import pytest
import typer.main

from pocketlens import __version__
from pocketlens.cli import app
from tests.e2e.conftest import Run, png

COMMAND = (sys.executable, "-m", "pocketlens")
PUBLIC = {"demo", "distill", "export", "verify", "inspect", "caption", "embed", "index", "search", "serve", "telemetry"}


def _commands() -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}

    def walk(path: tuple[str, ...], command: Any) -> None:
        found[path] = command
        for name, below in getattr(command, "commands", {}).items():
            walk((*path, name), below)

    walk((), typer.main.get_command(app))
    return found


# Reading


def test_the_public_table_is_there() -> None:
    assert {path[0] for path in _commands() if path} >= PUBLIC


@pytest.mark.parametrize("path", list(_commands()), ids=" ".join)
def test_every_command_and_option_is_explained(path: tuple[str, ...], run: Run) -> None:
    command = _commands()[path]
    assert command.help
    assert [p.name for p in command.params if not getattr(p, "help", None) and not p.hidden] == []
    ended = run(*path, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "Usage: pocketlens" in ended.out


def test_the_version_is_one_line(run: Run) -> None:
    assert run("--version") == (0, f"pocketlens {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("caption", "x.jpg", "--bundle", "b", "--nope"), "--nope"),
        (("caption", "x.jpg"), "--bundle"),
        (("caption", "--bundle", "b"), "FILE"),
        (("caption", "x.jpg", "--bundle", "b", "--beam", "0"), "--beam"),
        (("caption", "x.jpg", "--bundle", "b", "--threshold", "2"), "--threshold"),
        (("serve", "--port", "70000"), "--port"),
        (("distill", "train"), "RECIPE"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_wrong_command_line_ends_in_2_and_usage_on_stderr(
    arguments: tuple[str, ...], complaint: str, run: Run
) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    usage, hint, error = ended.err.splitlines()
    assert usage.startswith("Usage: pocketlens")
    assert hint.endswith("--help`.")
    assert error.startswith("Error: ")
    assert complaint.lower() in error.lower()


@pytest.mark.parametrize("arguments", [(), ("distill",), ("telemetry",)])
def test_a_command_group_alone_shows_its_help(arguments: tuple[str, ...], run: Run) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.err) == (2, "")
    assert "Commands" in ended.out


# Offline use


def test_caption_writes_one_line_a_picture(bundle: Path, folder: Path, run: Run) -> None:
    files = sorted(folder.iterdir())
    ended = run("caption", *files, "--bundle", bundle)
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split("\t") for line in ended.lines]
    assert [row[0] for row in rows] == [str(file) for file in files]
    assert all(re.fullmatch(r"[01]\.\d\d", confidence) for _, confidence, _ in rows)
    assert len({text for _, _, text in rows}) > 5  # the pictures differ, and so do the captions


def test_caption_json_says_the_same_and_more(bundle: Path, folder: Path, run: Run) -> None:
    files = sorted(folder.iterdir())
    texts = [line.split("\t")[2] for line in run("caption", *files, "-b", bundle).lines]
    ended = run("caption", *files, "-b", bundle, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert [record["text"] for record in ended.records] == texts
    assert [record["file"] for record in ended.records] == [str(file) for file in files]
    assert {(record["source"], record["model_version"]) for record in ended.records} == {("device", "tiny-3")}
    assert all(len(r["token_ids"]) == len(r["token_logprobs"]) > 0 for r in ended.records)


def test_beam_search_finds_captions_that_are_at_least_as_likely(bundle: Path, folder: Path, run: Run) -> None:
    files = sorted(folder.iterdir())
    greedy, wide = (run("caption", *files, "-b", bundle, "--json", "--beam", b).records for b in (1, 4))
    means = [[float(np.mean(record["token_logprobs"])) for record in records] for records in (greedy, wide)]
    assert greedy != wide
    assert np.mean(means[1]) >= np.mean(means[0])


def test_embed_gives_unit_vectors_and_the_same_ones_in_json(bundle: Path, folder: Path, run: Run) -> None:
    files = sorted(folder.iterdir())[:3]
    text, ended = run("embed", *files, "-b", bundle), run("embed", *files, "-b", bundle, "--json")
    assert (text.code, text.err, ended.code, ended.err) == (0, "", 0, "")
    vectors = np.array([record["embedding"] for record in ended.records])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    printed = np.array([line.split("\t")[1].split() for line in text.lines], np.float64)
    np.testing.assert_allclose(printed, vectors, atol=1e-6)
    assert [record["file"] for record in ended.records] == [line.split("\t")[0] for line in text.lines]


def test_what_the_user_asks_for_reaches_the_engine(bundle: Path, folder: Path, run: Run) -> None:
    file = folder / "00.png"
    assert run("embed", file, "-b", bundle, "--precision", "int8", "--threads", 1).code == 0
    run("embed", file, "-b", bundle, "--precision", "fp7").refuses("BundleIncomplete", 4)
    run("embed", file, "-b", bundle, "--engine", "steam").refuses("EngineError", 10)


def test_the_bundle_may_come_from_the_environment(
    bundle: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLENS_BUNDLE", str(bundle))
    assert run("caption", folder / "00.png").code == 0


def test_index_then_search_finds_and_a_second_run_changes_nothing(bundle: Path, folder: Path, run: Run) -> None:
    first = run("index", folder, "-b", bundle)
    store = folder.parent / "pocketlens.sqlite"
    assert first.code == 0
    assert first.out == f"20 added, 0 unchanged, 0 removed, 0 refused: {store}\n"
    assert first.told == []
    assert "20/20" in first.err  # progress goes to stderr
    [again] = run("index", folder, "-b", bundle, "--json").records
    assert again == {"store": str(store), "added": 0, "unchanged": 20, "removed": 0, "refused": [], "copied": 0}

    found = run("search", "two red balls", "-b", bundle, "--store", store, "-k", 5)
    assert (found.code, found.err) == (0, "")
    hits = run("search", "two red balls", "-b", bundle, "--store", store, "-k", 5, "--json").records
    assert [hit["path"] for hit in hits] == [line.split("\t")[1] for line in found.lines]
    scores = [hit["score"] for hit in hits]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    captions = {r["file"]: r["text"] for r in run("caption", *folder.iterdir(), "-b", bundle, "--json").records}
    assert all(captions[hit["path"]] == hit["caption"] for hit in hits)


def test_index_notices_new_changed_and_deleted_files(bundle: Path, folder: Path, run: Run) -> None:
    run("index", folder, "-b", bundle)
    (folder / "00.png").unlink()
    (folder / "01.png").write_bytes(png(700))
    (folder / "new.png").write_bytes(png(701))
    [record] = run("index", folder, "-b", bundle, "--json").records
    assert (record["added"], record["unchanged"], record["removed"]) == (2, 18, 1)


def test_inspect_tells_what_is_inside(bundle: Path, run: Run) -> None:
    text, ended = run("inspect", bundle), run("inspect", bundle, "--json")
    assert (text.code, text.err, ended.code, ended.err) == (0, "", 0, "")
    [manifest] = ended.records
    assert manifest == json.loads((bundle / "manifest.json").read_bytes())
    assert manifest["model_version"] in text.lines[0]
    rows = [line.split("\t")[:3] for line in text.lines if "\tonnx\t" in line]
    assert rows == [[g["role"], g["target"], g["precision"]] for g in manifest["graphs"]]


def test_odd_file_names_keep_to_their_line_and_survive_json(bundle: Path, tmp_path: Path, run: Run) -> None:
    names = [b"two\nlines.png", b"tab\there.png", b"caf\xc3\xa9 :cat: [b].png", b"\x1b[2Jclear.png"]
    if sys.platform == "linux":  # macOS has no names that are not UTF-8
        names.append(b"caf\xe9.png")
    root = tmp_path / "odd"
    root.mkdir()
    files = [os.fsdecode(os.path.join(os.fsencode(root), name)) for name in names]
    for file in files:
        Path(file).write_bytes(png(9))
    text = run("caption", *files, "-b", bundle)
    assert text.code == 0
    assert len(text.lines) == len(files)
    assert all(len(line.split("\t")) == 3 for line in text.lines)
    assert "\x1b" not in text.out
    assert [record["file"] for record in run("caption", *files, "-b", bundle, "--json").records] == files
    assert run("index", root, "-b", bundle).code == 0
    search = ("search", "a", "-b", bundle, "--store", tmp_path / "pocketlens.sqlite")
    assert len(run(*search).lines) == len(files)
    assert sorted(hit["path"] for hit in run(*search, "--json").records) == sorted(files)
    for file in files:
        Path(file).write_bytes(b"")
    refused = run("caption", *files, "-b", bundle)
    assert len(refused.told) == len(files) + 1
    assert "\x1b" not in refused.err


# Distillation


def test_distill_goes_all_the_way_and_a_second_run_says_the_same(
    bundle: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketlens.distill.students.config import PRESETS
    from tests.distill.tiny import CONFIG, write_captioner, write_embedder

    monkeypatch.setitem(PRESETS, "tiny", CONFIG)
    recipe, work = tmp_path / "recipe.toml", tmp_path / "work"
    recipe.write_text(f"""
name = "test"
threads = 1
seed = 5
[teachers]
embedder = "{write_embedder(tmp_path / "embedder")}"
captioner = "{write_captioner(tmp_path / "captioner")}"
[data]
source = "scenes"
train = 6
val = 1
test = 3
train_px = 32
test_px = 32
[reinforce]
views = 1
shard = 4
[student]
preset = "tiny"
[train]
steps = 2
batch = 4
""")
    ended = run("distill", recipe, "--work", work, "--json")
    assert ended.code == 0, ended.err
    assert [record["subject"] for record in ended.records] == ["teacher", "student"]
    assert ended.told == []
    for step in ("render", "reinforce", "train", "teacher", "student"):
        assert re.search(rf"^{step} .* ETA ", ended.err, re.MULTILINE), step
    assert run("distill", recipe, "--work", work, "--json").records == ended.records
    shards = run("distill", "reinforce", recipe, "--work", work).lines
    assert len(shards) == 2
    assert all(Path(shard).exists() for shard in shards)
    assert run("distill", "train", recipe, "--work", work).lines == [str(work / "student")]

    judged = run("distill", "evaluate", recipe, "--work", work, "--bundle", bundle, "--json").records
    assert judged[:2] == ended.records
    assert [record["subject"] for record in judged[2:]] == ["onnx-fp32", "onnx-int8"]
    text = run("distill", "evaluate", recipe, "--work", work).lines
    assert len(text) == sum(len(record["figures"]) for record in ended.records)
    assert all(re.fullmatch(r"\w+\t\w+\t[\d.]+\t\[[\d.]+, [\d.]+\]\tn=\d+", line) for line in text)


# Telemetry


def test_telemetry_is_off_until_asked_for_then_shown_and_purged(
    bundle: Path, folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, file = tmp_path / "log", folder / "00.png"
    monkeypatch.setenv("POCKETLENS_TELEMETRY_DIR", str(log))
    run("caption", file, "-b", bundle)
    assert not log.exists()
    assert run("telemetry", "preview").out == ""

    monkeypatch.setenv("POCKETLENS_TELEMETRY", "local")
    run("caption", file, tmp_path / "missing.jpg", "-b", bundle)
    text, ended = run("telemetry", "preview"), run("telemetry", "preview", "--json")
    assert [json.loads(line)["event"] for line in text.lines] == ["engine_loaded", "picture_refused", "caption_served"]
    assert "Nothing of this is uploaded" in text.err
    [record] = ended.records
    assert [event["event"] for event in record["events"]] == ["engine_loaded", "picture_refused", "caption_served"]
    stored = b"".join(path.read_bytes() for path in log.iterdir())
    assert record["stored_bytes"] == len(stored)
    assert str(tmp_path).encode() not in stored

    assert run("telemetry", "purge", "--json").records == [{"deleted_bytes": len(stored)}]
    assert not log.exists()
    assert "0 bytes" in run("telemetry", "purge").err


def test_a_telemetry_switch_that_means_nothing_is_refused(
    bundle: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLENS_TELEMETRY", "yes please")
    run("caption", folder / "00.png", "-b", bundle).refuses("TelemetryError", 14)


# The cloud


@pytest.fixture
def service(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real `pocketlens serve`, and its address."""
    command = (*COMMAND, "serve", "--bundle", str(bundle), "--port", "0")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "Listening on " in line:
                    break
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert address is not None, line
            yield process, address[0]
        finally:
            process.kill()


def test_serve_answers_and_pictures_go_there_only_with_consent(
    bundle: Path, folder: Path, run: Run, service: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = service
    files = sorted(folder.iterdir())[:3]
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{url}/v1/captions", content=files[0].read_bytes())
        assert answer.status_code == 200
        refusal = client.post(f"{url}/v1/captions", content=b"no picture")
        assert (refusal.status_code, refusal.json()["error"]["kind"]) == (422, "unknown_type")
    local = run("caption", *files, "-b", bundle, "--json").records
    assert answer.json() == {"text": local[0]["text"], "model": "tiny-3"}

    ask = ("caption", *files, "-b", bundle, "--cloud", url, "--threshold", "1", "--json")
    kept = run(*ask)
    assert kept.records == local
    assert "Nothing is sent" in kept.err
    sent = run(*ask, "--consent")
    assert (sent.code, sent.err) == (0, "")
    assert [record["source"] for record in sent.records] == ["cloud"] * 3
    assert run(*ask[:-1], "--consent").lines[0].endswith("  [cloud]")

    process.send_signal(signal.SIGINT)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in log
    assert log.count('"POST /v1/captions') == 2 + 2 * len(files)  # none of them from the run without consent


def test_a_cloud_that_does_not_answer_costs_no_caption(bundle: Path, folder: Path, run: Run) -> None:
    ask = ("caption", folder / "00.png", "-b", bundle, "--json")
    cloud = ("--cloud", "http://127.0.0.1:9", "--consent", "--threshold", "1")  # port 9: nobody listens
    assert run(*ask, *cloud).records == run(*ask).records


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--consent",), "--cloud URL"),
        (("--consent", "--cloud", "http://example.org"), "unencrypted"),
        (("--consent", "--cloud", "ftp://example.org"), "https://"),
    ],
)
def test_consent_to_nowhere_or_to_the_open_is_refused(
    arguments: tuple[str, ...], said: str, bundle: Path, folder: Path, run: Run
) -> None:
    assert said in run("caption", folder / "00.png", "-b", bundle, *arguments).refuses("CloudError", 13)


def test_serve_wants_exactly_one_backend_and_a_free_port(bundle: Path, run: Run) -> None:
    assert "none of them" in run("serve").refuses("CloudError", 13)
    both = run("serve", "--bundle", bundle, "--teacher", "builtin").refuses("CloudError", 13)
    assert "--teacher and --bundle" in both
    assert "192.0.2.1" in run("serve", "--bundle", bundle, "--host", "192.0.2.1").refuses("CloudError", 13)


# How a command is ended from outside


def test_ctrl_c_ends_in_130_without_a_traceback_and_keeps_what_was_printed(bundle: Path, folder: Path) -> None:
    file = folder / ("long name " * 12 + ".png")
    file.write_bytes(png(0))
    # More output than a pipe holds: the command cannot end before we read on, however fast it is.
    command = (*COMMAND, "caption", "-b", str(bundle), "--threads", "1", *[str(file)] * 1500)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "Interrupted: what was finished is kept.\n"
    assert set(rest.splitlines(keepends=True)) <= {first}  # whole lines only
    assert len(rest.splitlines()) < 1499


@pytest.mark.parametrize("arguments", [("inspect",), ("--help",)], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...], bundle: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` leaves it
    try:
        command = (*COMMAND, *arguments, str(bundle))
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_index_killed_in_the_middle_goes_on_where_it_was(bundle: Path, folder: Path, run: Run) -> None:
    assert run("index", folder, "-b", bundle).code == 0
    store = folder.parent / "pocketlens.sqlite"
    for number in range(400):
        (folder / f"more-{number:03}.png").write_bytes((folder / f"{number % 20:02}.png").read_bytes())
    command = (*COMMAND, "index", str(folder), "-b", str(bundle), "--threads", "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        committed = 20
        watcher = apsw.Connection(str(store))
        watcher.set_busy_timeout(20_000)
        while committed == 20:
            assert process.poll() is None, process.communicate()
            watcher.execute("BEGIN IMMEDIATE")  # while this is held, the other side cannot commit
            committed = watcher.execute("SELECT count(*) FROM entries").get
            if committed > 20:
                process.kill()
                process.wait()
            watcher.execute("ROLLBACK")
        watcher.close()
    assert process.returncode == -signal.SIGKILL
    assert 20 < committed < 420
    [record] = run("index", folder, "-b", bundle, "--json").records
    assert (record["unchanged"], record["added"]) == (committed, 420 - committed)
    assert len(run("search", "a", "-b", bundle, "--store", store, "-k", 1000).lines) == 420
