"""`pocketlens caption`: every way of decoding from the command line."""

from pathlib import Path

import pytest

from pocketlens.runtime import load
from pocketlens.runtime.decoding import Beam, Decoding, Nucleus
from tests.e2e.conftest import Run

WAYS: dict[str, tuple[list[object], Decoding]] = {
    "beam": (
        ["--beam", 4, "--num-captions", 3, "--length-penalty", 1],
        Decoding(search=Beam(width=4), num_captions=3, length_penalty=1.0),
    ),
    "sample": (
        ["--sample", "--top-p", 0.8, "--temperature", 1.5, "--seed", 5, "--num-captions", 2],
        Decoding(search=Nucleus(top_p=0.8, temperature=1.5, seed=5), num_captions=2),
    ),
    "prompt": (
        ["--prompt", "a red", "--max-tokens", 7, "--no-repeat-ngram", 1],
        Decoding(prompt="a red", max_tokens=7, no_repeat_ngram=1),
    ),
    "rerank": (
        ["--beam", 3, "--num-captions", 3, "--rerank", "--rerank-weight", 2],
        Decoding(search=Beam(width=3), num_captions=3, rerank=True, rerank_weight=2.0),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_asked_for_reaches_the_lens(bundle: Path, folder: Path, run: Run, way: str) -> None:
    options, decoding = WAYS[way]
    files = sorted(folder.iterdir())
    ended, plain = (
        run("caption", *files, "-b", bundle, "--json", *options),
        run("caption", *files, "-b", bundle, *options),
    )
    assert (ended.code, ended.err, plain.code) == (0, "", 0)
    expected = list(load(bundle).captions(list(files), decoding=decoding))
    assert [tuple(record["token_ids"]) for record in ended.records] == [c.token_ids for c in expected]
    texts = [one.text for caption in expected for one in (caption, *caption.alternatives)]
    assert [line.split("\t")[2] for line in plain.lines] == texts
    for record in ended.records:
        everything = [record, *record["alternatives"]]
        assert len(everything) == decoding.num_captions
        for one in everything:
            assert len(one["token_ids"]) == len(one["token_logprobs"]) == len(one["token_entropies"])
        assert [one["score"] for one in everything] == sorted((one["score"] for one in everything), reverse=True)


def test_a_stream_adds_up_to_the_caption_that_follows_it(bundle: Path, folder: Path, run: Run) -> None:
    files = sorted(folder.iterdir())
    pieces: dict[str, str] = {}
    lines = 0
    for record in run("caption", *files, "-b", bundle, "--stream", "--json").records:
        if "piece" in record:
            pieces[record["file"]] = pieces.get(record["file"], "") + record["piece"]
            lines += 1
        else:
            assert record["text"] == pieces.get(record["file"], "")
    assert len(pieces) > 15
    assert lines > 2 * len(pieces)
    text = run("caption", *files, "-b", bundle, "--stream").lines
    assert sum(line.split("\t")[1] == "+" for line in text) == lines
    assert [line for line in text if line.split("\t")[1] != "+"] == run("caption", *files, "-b", bundle).lines


def test_a_bad_picture_in_a_stream_is_listed(bundle: Path, folder: Path, run: Run) -> None:
    bad = folder / "bad.png"
    bad.write_bytes(b"no picture")
    ended = run("caption", folder / "00.png", bad, "-b", bundle, "--stream")
    assert ended.code == 1
    assert str(bad) in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", 0.5], "--top-p is for --sample"),
        (["--seed", 1], "--seed is for --sample"),
        (["--rerank-weight", 1], "--rerank-weight is for --rerank"),
        (["--sample", "--beam", 2], "give one of the two"),
        (["--sample", "--top-p", 0], "top_p: expected above 0"),
        (["--sample", "--temperature", 0], "temperature: expected a number above 0"),
        (["--sample", "--seed", -1], "seed: expected 0 to"),
        (["--num-captions", 2], "expected at most 1 from greedy decoding"),
        (["--rerank"], "rerank: expected num_captions above 1"),
        (["--prompt", "abcdefghij"], "prompt: expected fewer than the 8 tokens"),
        (["--stream", "--beam", 3], "--stream writes one caption"),
        (["--max-tokens", 0], "--max-tokens"),
    ],
)
def test_options_that_contradict_are_a_wrong_command_line(
    bundle: Path, folder: Path, run: Run, options: list[object], message: str
) -> None:
    ended = run("caption", folder / "00.png", "-b", bundle, *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err.replace("\n", " ")
