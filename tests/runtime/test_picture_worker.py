"""Pictures in a decoding process: the same pixels, one typed error each, and the host goes on."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pocketlens.core.errors import EngineError, PictureError
from pocketlens.core.preprocess import preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker import InProcess, PicturePool, PictureWorker, WorkerLimits, picture_reader
from pocketlens.runtime.picture_worker import worker as worker_module

SPEC = PreprocessSpec(height_px=32, width_px=48, formats=("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"))
# A machine under load takes its time: what is about something else than time has plenty of it.
PATIENT = WorkerLimits(wall_s=60.0, cpu_s=60)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def encoded(kind: str = "PNG", size: tuple[int, int] = (90, 70), mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@cache
def endless() -> bytes:
    """A small JPEG file that takes many seconds: each scan passes over all of 25 million pixels."""
    file = io.BytesIO()
    Image.new("L", (5000, 5000), 77).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 80 + data[-2:]


@pytest.fixture(scope="module")
def worker() -> Iterator[PictureWorker]:
    with PictureWorker(PATIENT) as one:
        yield one


def refused(worker: PictureWorker | PicturePool, source: Any, spec: PreprocessSpec = SPEC) -> PictureError:
    with pytest.raises(PictureError) as refusal:
        worker.prepare(source, spec)
    return refusal.value


def is_gone(pid: int) -> bool:
    """Whether the process has ended and was waited for: a zombie is not gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = Image.Exif()
EXIF[0x0112] = 6


# Every plugin and every library behind it has to be there before the process may open no file any more.
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"exif": EXIF, "icc_profile": SRGB}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (20, 20))]}),
        ("PNG", "RGBA", {"exif": EXIF, "icc_profile": SRGB}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGBA", {"exif": EXIF, "icc_profile": SRGB}),
        ("AVIF", "RGB", {"exif": EXIF}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"exif": EXIF, "icc_profile": SRGB}),
        ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "LAB", {}),
        ("TIFF", "F", {}),
    ],
)
def test_the_pixels_are_those_of_this_process(
    worker: PictureWorker, kind: str, mode: str, options: dict[str, Any]
) -> None:
    if mode == "LAB":
        file = io.BytesIO()
        Image.new("LAB", (40, 30), (120, 90, 200)).save(file, kind)
        data = file.getvalue()
    elif mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10).save(file, kind)
        data = file.getvalue()
    else:
        data = encoded(kind, mode=mode, **options)
    pixels = worker.prepare(data, SPEC)
    np.testing.assert_array_equal(pixels, preprocess(data, SPEC))
    assert pixels.flags.writeable
    assert worker.starts == 1


def test_every_kind_of_source_is_taken(worker: PictureWorker, tmp_path: Path) -> None:
    data = encoded()
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    image = Image.open(io.BytesIO(data))
    expected = preprocess(data, SPEC)
    for source in (path, str(path), data, io.BytesIO(data), image, np.asarray(image)):
        np.testing.assert_array_equal(worker.prepare(source, SPEC), expected)


def test_refusals_are_those_of_this_process_and_name_the_path(worker: PictureWorker, tmp_path: Path) -> None:
    small = PreprocessSpec(height_px=8, width_px=8, max_pixels=1000, max_bytes=50_000, formats=("PNG", "JPEG"))
    whole = encoded()
    cases = [tmp_path, tmp_path / "absent.png"]
    for name, data in {
        "empty": b"",
        "large": b"\0" * 50_001,
        "text": b"no picture",
        "gif": encoded("GIF", mode="P"),
        "many": whole,
        "strip": encoded(size=(909, 1)),
        "torn": encoded(size=(30, 30))[:-400],
    }.items():
        (tmp_path / name).write_bytes(data)
        cases.append(tmp_path / name)
    kinds = []
    for case in cases:
        with pytest.raises(PictureError) as own:
            preprocess(case, small)
        error = refused(worker, case, small)
        assert (error.kind, str(error)) == (own.value.kind, str(own.value))
        assert error.what == str(case)
        kinds.append(error.kind)
    assert kinds == [
        "not_a_file",
        "missing",
        "empty",
        "too_large",
        "unknown_type",
        "type_not_allowed",
        "too_many_pixels",
        "bad_shape",
        "corrupt",
    ]
    assert worker.starts == 1


def test_a_picture_that_takes_too_long_is_refused_and_a_new_process_is_there() -> None:
    with PictureWorker(WorkerLimits(wall_s=1.0)) as worker:
        worker.start()
        first = worker.pid
        error = refused(worker, endless())
        assert error.kind == "too_slow"
        assert "1 s" in error.expected
        worker.start()
        assert first is not None
        assert is_gone(first)
        assert worker.starts == 2
        assert worker.prepare(np.asarray(Image.new("RGB", (9, 9))), SPEC).shape == (32, 48, 3)


def test_the_limit_of_time_includes_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = WorkerLimits(wall_s=1.0)
    assert limits.answer_s == 0.95
    assert WorkerLimits().answer_s == 1.9
    assert WorkerLimits(wall_s=60.0).answer_s == 59.9
    assert limits.answer_s < limits.ended_s < limits.wall_s
    deadlines, patience = list[float](), list[float | None]()
    ask, wait = worker_module._ask, subprocess.Popen.wait

    def noted_ask(*given: Any) -> Any:
        deadlines.append(given[-1])
        return ask(*given)

    def noted_wait(popen: Any, timeout: float | None = None) -> int:
        patience.append(timeout)
        return wait(popen, timeout)

    with PictureWorker(limits) as worker:
        worker.start()
        monkeypatch.setattr(worker_module, "_ask", noted_ask)
        monkeypatch.setattr(subprocess.Popen, "wait", noted_wait)
        before = time.monotonic()
        assert refused(worker, endless()).kind == "too_slow"
        # It is killed at `answer_s`, its end is waited for until `ended_s`, and then the error is raised.
        assert before + 0.95 <= deadlines[0] <= time.monotonic()
        assert patience[0] is not None
        assert 0.0 <= patience[0] <= 0.025 + 1e-6


def test_a_process_that_takes_its_time_to_end_is_waited_for_before_the_next_picture() -> None:
    with PictureWorker(WorkerLimits(wall_s=1e-5)) as worker:  # no process is gone after half a microsecond
        for _ in range(3):
            worker.start()
            killed = worker.pid
            assert killed is not None
            assert refused(worker, endless()).kind == "too_slow"
            worker.start()
            assert is_gone(killed)
        last = worker.pid
        assert refused(worker, endless()).kind == "too_slow"
    assert last is not None
    assert is_gone(last)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_is_a_refusal(number: signal.Signals) -> None:
    with PictureWorker(PATIENT) as worker:
        worker.start()
        pid = worker.pid
        assert pid is not None
        before = _cpu_ticks(pid)

        def crash() -> None:
            while _cpu_ticks(pid) < before + 20:  # 0.2 s of work: it is in the middle of the picture
                time.sleep(0.01)
            os.kill(pid, number)

        thread = threading.Thread(target=crash)
        thread.start()
        error = refused(worker, endless())
        thread.join()
        assert error.kind == "crashed_decoder"
        assert number.name in error.found
        np.testing.assert_array_equal(worker.prepare(encoded(), SPEC), preprocess(encoded(), SPEC))
        assert worker.starts == 2


def _cpu_ticks(pid: int) -> int:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_process_that_was_killed_while_idle_costs_no_picture() -> None:
    with PictureWorker(PATIENT) as worker:
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        np.testing.assert_array_equal(worker.prepare(encoded(), SPEC), preprocess(encoded(), SPEC))
        assert worker.starts == 2


@LINUX
def test_memory_beyond_the_limit_is_a_refusal_and_the_process_goes_on() -> None:
    limits = WorkerLimits(memory_bytes=128 * 2**20, wall_s=60.0, cpu_s=60)
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(file, "PNG")
    with PictureWorker(limits) as worker:
        error = refused(worker, file.getvalue())
        assert error.kind == "too_many_pixels"
        assert "memory" in error.expected
        worker.prepare(encoded(), SPEC)
        assert worker.starts == 1


@LINUX
def test_the_process_can_open_no_file_dump_no_core_and_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_TOKEN", "very secret")
    with PictureWorker(PATIENT) as worker:
        worker.prepare(encoded(), SPEC)
        limits = Path(f"/proc/{worker.pid}/limits").read_text(encoding="ascii")
        found = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
        open_files = sorted(int(name) for name in os.listdir(f"/proc/{worker.pid}/fd"))
        assert int(found["Max open files"]) == open_files[-1] + 1
        assert found["Max file size"] == found["Max core file size"] == "0"
        assert int(found["Max cpu time"]) <= 62
        assert int(found["Max address space"]) < 900 * 2**20
        assert b"very secret" not in Path(f"/proc/{worker.pid}/environ").read_bytes()


@LINUX
def test_neither_torch_nor_an_inference_library_is_in_the_process() -> None:
    with PictureWorker(PATIENT) as worker:
        worker.prepare(encoded(), SPEC)
        maps = Path(f"/proc/{worker.pid}/maps").read_text(encoding="utf-8")
    assert "_imaging" in maps
    assert not [name for name in ("torch", "onnxruntime", "tokenizers", "apsw") if name in maps]


def test_closing_leaves_no_process_and_a_closed_worker_says_so() -> None:
    worker = PictureWorker(PATIENT)
    worker.prepare(encoded(), SPEC)
    pid = worker.pid
    assert pid is not None
    worker.close()
    worker.close()
    assert is_gone(pid)
    with pytest.raises(EngineError, match="closed"):
        worker.prepare(encoded(), SPEC)


def test_a_worker_that_nobody_holds_ends_its_process() -> None:
    worker = PictureWorker(PATIENT)
    worker.start()
    pid = worker.pid
    assert pid is not None
    del worker
    gc.collect()
    assert is_gone(pid)


HOST = f"""
import io, os, signal, sys, threading, time
import numpy as np
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.runtime.test_picture_worker import PATIENT, SPEC, encoded, endless, is_gone
from pocketlens.runtime.picture_worker import PictureWorker, PicturePool
worker = PictureWorker(PATIENT)
expected = worker.prepare(encoded(), SPEC)
pid = worker.pid
"""


def host(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", HOST + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_end_of_the_program_ends_the_process() -> None:
    assert is_gone(int(host("print(pid)")))


def test_a_program_that_is_killed_takes_the_process_with_it() -> None:
    code = HOST + "print(pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while not _has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """Whether it is gone, or a zombie that the system's first process has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return is_gone(pid)


def test_ctrl_c_ends_the_picture_not_the_worker() -> None:
    code = """
slow = endless()
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run in the background
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    worker.prepare(slow, SPEC)
except KeyboardInterrupt:
    print("interrupted")
assert is_gone(pid)
assert (worker.prepare(encoded(), SPEC) == expected).all()
worker.close()
"""
    assert host(code) == "interrupted\n"


def test_a_forked_process_starts_its_own_and_leaves_the_other_alone() -> None:
    code = """
pool = PicturePool(2)
def taken():  # a thread that the fork does not copy has the lock, and a worker of the pool
    with worker._lock:
        pool._idle.get()
        time.sleep(3)
threading.Thread(target=taken, daemon=True).start()
time.sleep(0.3)
child = os.fork()
if child == 0:
    fine = (worker.prepare(encoded(), SPEC) == expected).all() and worker.pid != pid
    fine = fine and len([pool._idle.get_nowait() for _ in range(2)]) == 2
    worker.close()
    os._exit(0 if fine else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
assert worker.pid == pid
assert (worker.prepare(encoded(), SPEC) == expected).all()
print(worker.starts)
"""
    assert host(code) == "0\n1\n"


def test_threads_share_one_worker(worker: PictureWorker) -> None:
    files = [encoded(size=(40 + step, 50)) for step in range(12)]
    results: dict[int, Any] = {}

    def work(start: int) -> None:
        for at in range(start, 12, 4):
            results[at] = worker.prepare(files[at], SPEC)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, file in enumerate(files):
        np.testing.assert_array_equal(results[at], preprocess(file, SPEC))


def test_a_pool_keeps_the_order_and_gives_each_bad_picture_exactly_one_error() -> None:
    good, torn = encoded(), encoded("JPEG")[:-900]
    pictures = [good, b"text", torn, good, torn, b"text", b"", good, "absent.png", "absent.png", good]
    with PicturePool(2, limits=PATIENT) as pool:
        asked: list[int] = []

        def source() -> Iterator[Any]:
            for at, picture in enumerate(pictures):
                asked.append(at)
                yield picture

        answers = pool.prepare_all(source(), SPEC)
        first = next(answers)
        assert len(asked) <= 4  # no more are held than two for each worker
        results = [first, *answers]
    kinds = [result.kind if isinstance(result, PictureError) else "read" for result in results]
    assert kinds == [
        "read",
        "unknown_type",
        "corrupt",
        "read",
        "corrupt",
        "unknown_type",
        "empty",
        "read",
        "missing",
        "missing",
        "read",
    ]
    errors = [result for result in results if isinstance(result, PictureError)]
    assert len({id(error) for error in errors}) == 7


def test_a_pool_that_is_left_early_ends_its_processes() -> None:
    with PicturePool(2, limits=PATIENT) as pool:
        for result in pool.prepare_all((encoded() for _ in range(1000)), SPEC):
            assert isinstance(result, np.ndarray)
            break
        pids = [worker.pid for worker in pool.workers if worker.pid]
        assert pids
    assert all(is_gone(pid) for pid in pids)


def test_one_by_one_a_pool_starts_one_process_only() -> None:
    with PicturePool(3, limits=PATIENT) as pool:
        for _ in range(3):
            pool.prepare(encoded(), SPEC)
        assert sorted(worker.starts for worker in pool.workers) == [0, 0, 1]


def test_a_reader_is_chosen_by_a_word() -> None:
    own = picture_reader("in_process")
    assert isinstance(own, InProcess)
    with picture_reader("worker", workers=1, limits=PATIENT) as far:  # type: ignore[attr-defined]
        np.testing.assert_array_equal(own.prepare(encoded(), SPEC), far.prepare(encoded(), SPEC))
    with pytest.raises(ValueError, match="in_process, worker, found 'elsewhere'"):
        picture_reader("elsewhere")  # type: ignore[arg-type]


def test_an_interpreter_that_cannot_be_started_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with PictureWorker(PATIENT) as worker, pytest.raises(EngineError, match="No such file"):
        worker.prepare(encoded(), SPEC)


def test_a_process_that_fails_to_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise RuntimeError('half an installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with PictureWorker(PATIENT) as worker, pytest.raises(EngineError, match="half an installation"):
        worker.prepare(encoded(), SPEC)


@pytest.mark.parametrize("change", [{"memory_bytes": 1000}, {"wall_s": 0}, {"cpu_s": 0}, {"start_s": -1}])
def test_limits_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="limits"):
        WorkerLimits(**change)
