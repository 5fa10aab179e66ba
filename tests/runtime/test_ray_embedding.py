"""The Ray Data job on a cluster of two workers on this machine, one of which is killed."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from pocketlens.core.errors import EngineError
from pocketlens.runtime import load
from pocketlens.runtime.vectors.items import list_items

pytest.importorskip("ray.data")

# In a process of its own: Ray changes signal handlers, logging and warnings of the one that it runs in.
_JOB = """
    import json, sys
    from pathlib import Path
    from pocketlens.core.errors import PocketlensError
    from pocketlens.runtime import load
    from pocketlens.runtime.distributed.ray_embedding import embed_on_ray
    from pocketlens.runtime.vectors.sidecar import Header
    from pocketlens.runtime.vectors.writing import write_vectors
    import ray
    bundle, source, out, theirs = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=150_000_000)
    lens = load(bundle, threads=1)
    header = Header(model_version=lens.model_version, dim=lens.dim, precision=lens.precision)
    said = lambda done, total: print(done, total, flush=True)
    try:
        done = write_vectors(source, Path(out), header, embed_on_ray(theirs, workers=2), progress=said)
    except PocketlensError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        print(json.dumps({"rows": done.rows, "refused": [entry.file for entry in done.refused]}))
"""


def _start(*arguments: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "RAY_DEDUP_LOGS": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_JOB), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def _workers(session: int) -> list[int]:
    """Return the processes of this job that hold a lens."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if b"MapWorker" in title and os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def _end(job: "subprocess.Popen[str]") -> dict[str, object]:
    out, err = job.communicate(timeout=280)
    assert job.returncode == 0, err[-3000:]
    return dict(json.loads(out.splitlines()[-1]))


def _tar(path: Path, pictures: list[bytes], count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            data = b"no picture" if number == 9 else pictures[number % len(pictures)]
            info = tarfile.TarInfo(f"{number:05}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(bundle_path: Path, pictures: list[bytes], tmp_path: Path) -> None:
    count = 6000
    source, out = tmp_path / "pictures.tar", tmp_path / "v.npy"
    _tar(source, pictures, count)
    job = _start(bundle_path, source, out, bundle_path)
    killed = 0
    deadline = time.monotonic() + 240
    while not killed and job.poll() is None and time.monotonic() < deadline:
        # Not before there are results: both workers are at work then.
        if (
            out.with_name("v.npy.files.jsonl").exists()
            and len(workers := _workers(job.pid)) >= 2
            and out.with_name("v.npy.files.jsonl").read_bytes().count(b"\n") > 1
        ):
            os.kill(workers[0], signal.SIGKILL)
            killed = workers[0]
        time.sleep(0.02)
    done = _end(job)
    assert killed, "the job ended before a worker could be killed"
    assert done == {"rows": count - 1, "refused": ["pictures.tar/00009.png"]}
    lens = load(bundle_path, threads=2)
    expected = np.stack([lens.embed_image(data) for data in pictures])
    order = [number % len(pictures) for number in range(count) if number != 9]
    np.testing.assert_allclose(np.load(out), expected[order], atol=1e-6)
    entries = [json.loads(line) for line in out.with_name("v.npy.files.jsonl").read_text().splitlines()[1:]]
    assert [entry["file"] for entry in entries] == [item.name for item in list_items(source)]


@pytest.mark.slow
def test_what_a_worker_raises_arrives_as_it_is(
    bundle_path: Path, bundle_copy: Path, folder: Path, tmp_path: Path
) -> None:
    for graph in bundle_copy.rglob("image_encoder.onnx"):
        graph.write_bytes(b"broken on the way to the workers")
    done = _end(_start(bundle_path, folder, tmp_path / "v.npy", bundle_copy))
    assert done["error"] == "BundleTampered"


def test_ray_is_told_to_count_nobody(bundle_path: Path) -> None:
    code = """
        import os, sys
        from pocketlens.runtime.distributed.ray_embedding import embed_on_ray
        assert "ray" not in sys.modules
        embed_on_ray(sys.argv[1])
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        import ray._common.usage.usage_lib as usage
        assert not usage.usage_stats_enabled()
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(bundle_path)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_without_ray_the_error_names_the_extra(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketlens.runtime.distributed.ray_embedding import embed_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pocketlens\[ray\]"):
        embed_on_ray(bundle_path)
