"""`pocketlens index` and `search` on a folder that holds a video beside pictures."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.runtime.test_video import moving, write

pytest.importorskip("av", reason="the extra [video] is not installed")


@pytest.fixture
def films(folder: Path) -> Path:
    write(folder / "film.mp4", [frame for seed in (1, 2) for frame in moving(seed, 50)])
    return folder


def test_a_video_is_indexed_with_the_pictures_and_found_with_its_times(films: Path, bundle: Path, run: Run) -> None:
    [done] = run("index", films, "-b", bundle, "--json").records
    assert (done["added"], done["refused"]) == (21, [])
    search = ("search", "a", "-b", bundle, "--store", films.parent / "pocketlens.sqlite", "-k", 100)
    videos = [hit for hit in run(*search, "--json").records if hit["modality"] == "video"]
    assert {Path(hit["path"]).name for hit in videos} == {"film.mp4"}
    spans = sorted((hit["at_ms"], hit["until_ms"]) for hit in videos)
    assert spans[0][0] == 0
    assert spans[-1][1] == 4000  # 100 frames at 25 a second
    told = [line for line in run(*search).lines if "film.mp4" in line]
    assert len(told) == len(videos)
    assert any(line.split("\t")[1].endswith("film.mp4 at 0:00-0:02") for line in told), told
    [again] = run("index", films, "-b", bundle, "--json").records
    assert (again["unchanged"], again["added"]) == (21, 0)


def test_a_file_that_only_calls_itself_a_video_is_refused_and_the_rest_is_indexed(
    films: Path, bundle: Path, run: Run
) -> None:
    (films / "broken.mp4").write_bytes(b"not a video at all")
    ended = run("index", films, "-b", bundle)
    assert ended.code == 1
    assert "21 added" in ended.out
    assert "refused unknown_type" in ended.err
