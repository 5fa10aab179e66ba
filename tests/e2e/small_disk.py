"""Index pictures into a store on a disk that fills up, then make room: prints what happened as JSON.

Run by `test_bad_input.py`: `python small_disk.py mount|limit BUNDLE PICTURES DISK`. `mount` makes a
real small disk (a tmpfs of this process's own mount namespace); `limit` stands in for it where no
disk can be mounted: the system then refuses to let a file grow.
"""

import contextlib
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

from pocketlens.cli import main

_ROOM_BYTES = 96 * 1024


def _run(*arguments: str) -> dict[str, object]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def _fill(disk: Path) -> None:
    """Leave `_ROOM_BYTES` on the disk."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - _ROOM_BYTES)


def _story(way: str, bundle: str, pictures: Path, disk: Path) -> dict[str, object]:
    if way == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
    store = disk / "store.sqlite"
    index = ("index", "--bundle", bundle, "--store", str(store), "--threads", "1", "--json")
    search = ("search", "a", "--bundle", bundle, "--store", str(store), "-k", "1000", "--threads", "1", "--json")
    story: dict[str, object] = {"before": _run(*index, str(pictures / "first"))}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if way == "mount":
        _fill(disk)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM_BYTES, unlimited[1]))
    story["full"] = _run(*index, str(pictures))
    if way == "mount":
        (disk / "ballast").unlink()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    story["kept"] = _run(*search)
    story["after"] = _run(*index, str(pictures))
    return story


if __name__ == "__main__":
    print(json.dumps(_story(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
