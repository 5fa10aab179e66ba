"""Kills installations of an archive and looks at what stands at the target afterwards.

Run: python -m benchmarks.archive_kills --kills 500

Two bundles are installed over each other in turns. Half of the kills come at a chosen step: the child
counts Python's audit events (every open, mkdir, rename and rmdir is one) and ends itself with SIGKILL at
the n-th, for each n in turn. The other half come at a random time. After each one the target must be the
old bundle or the new one, whole.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pocketlens.core.archive import install_archive, pack_bundle
from pocketlens.core.bundle import EmbeddingSpec, Manifest, TokenizerSpec, load_bundle, write_bundle
from pocketlens.core.preprocess import PreprocessSpec

FILES, FILE_BYTES = 12, 60_000
ALLOWED_NEIGHBOURS = {"target", ".target.installed"}


def make_archive(folder: Path, release: int) -> Path:
    """Return an archive of a bundle with `FILES` files of random bytes."""
    staged = folder / f"staged-{release}"
    (staged / "graphs").mkdir(parents=True)
    numbers = random.Random(release)
    for index in range(FILES):
        (staged / "graphs" / f"{index:02}.bin").write_bytes(numbers.randbytes(FILE_BYTES))
    (staged / "tokenizer.json").write_text("{}")
    manifest = Manifest(
        name="kills",
        model_version=f"kills-{release}",
        release=release,
        tasks=("embed",),
        embedding=EmbeddingSpec(dim=4),
        preprocess=PreprocessSpec(height_px=8, width_px=8),
        tokenizer=TokenizerSpec(vocab_size=10, text_length=8, pad_id=0, bos_id=1, eos_id=2),
        caption=None,
        graphs=(),
        licence="CC0-1.0",
        provenance={},
    )
    bundle = write_bundle(folder / f"bundle-{release}", manifest, staged)
    return pack_bundle(bundle.root, folder / f"{release}.zip")


def install(archive: Path, target: Path, *, kill_at: int | None = None) -> int:
    """Install in a forked child and return its process id; `kill_at` is the audit event to die at."""
    child = os.fork()
    if child:
        return child
    try:
        if kill_at is not None:
            _die_at(kill_at)
        install_archive(archive, target, allow_rollback=True)
        os._exit(0)
    finally:
        os._exit(1)  # never back into the parent's code


def _die_at(event_number: int) -> None:
    left = event_number

    def count(event: str, _: object) -> None:
        nonlocal left
        if event.partition(".")[0] in {"open", "os", "shutil", "tempfile", "fcntl", "ctypes"}:
            left -= 1
            if left == -1:  # once: os.kill is an event itself
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def count_events(archive: Path, target: Path) -> int:
    """Return how many audit events one installation has."""
    low, high = 0, 1
    while _is_killed(archive, target, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_killed(archive, target, middle) else (low, middle)
    return high


def _is_killed(archive: Path, target: Path, kill_at: int) -> bool:
    _, status = os.waitpid(install(archive, target, kill_at=kill_at), 0)
    return os.WIFSIGNALED(status)


def kill(archives: list[Path], target: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` installations and return how often what was found."""
    numbers, found = random.Random(seed), Counter[str]()
    install_archive(archives[0], target, allow_rollback=True)
    events = count_events(archives[1], target)
    began = time.perf_counter()
    os.waitpid(install(archives[0], target), 0)
    usual_s = time.perf_counter() - began
    done = step = 0
    while done < kills:
        before = load_bundle(target).manifest.release
        archive = archives[2 - before]  # releases are 1 and 2: always the other one
        by_step = done % 2 == 0
        if by_step:
            # Every step in turn where there are kills enough; spread over the installation where there are not.
            child = install(archive, target, kill_at=int(step * max(1.0, 2 * events / kills)) % events)
            step += 1
        else:
            child = install(archive, target)
            time.sleep(numbers.uniform(0, usual_s))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        after = load_bundle(target).manifest.release  # verifies every byte
        if not os.WIFSIGNALED(status):
            found["finished first, not counted"] += 1
            continue
        done += 1
        found["new" if after != before else "old"] += 1
        found["by step" if by_step else "by time"] += 1
        if {path.name for path in target.parent.iterdir()} - ALLOWED_NEIGHBOURS:
            found["left something for the next one"] += 1
    return {"kills": done, "events": events, "usual_ms": round(1000 * usual_s), **found}


def main() -> None:
    """Print the counts as JSON; a mix ends in an error of `load_bundle`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pocketlens-kills-"))
    try:
        archives = [make_archive(folder, release) for release in (1, 2)]
        target = folder / "installed" / "target"
        found = kill(archives, target, options.kills, options.seed)
        install_archive(archives[1], target, allow_rollback=True)
        left = {path.name for path in target.parent.iterdir()} - ALLOWED_NEIGHBOURS
        print(json.dumps({**found, "left behind at the end": sorted(left)}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
