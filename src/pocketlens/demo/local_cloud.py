"""A caption service in a process of its own on this machine, so that the demo's fallback is a real one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pocketlens.core.errors import CloudError

__all__ = ["local_cloud"]

_LISTENING = re.compile(r"Listening on (http://\S+)")


@contextmanager
def local_cloud() -> Iterator[str]:
    """Run `pocketlens serve --teacher builtin` on a free loopback port and give its address.

    Raises:
        CloudError: the service ended before it listened; its last words are in the message.
    """
    command = [sys.executable, "-m", "pocketlens", "serve", "--teacher", "builtin", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    try:
        yield _address(process)
    finally:
        process.terminate()
        process.communicate()


def _address(process: "subprocess.Popen[str]") -> str:
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        found = _LISTENING.search(line)
        if found:
            return found[1]
    raise CloudError(
        "the caption service",
        expected="a line that says where it listens",
        found="".join(said[-5:]) or "silence",
        remedy="Run `pocketlens serve --teacher builtin` by hand to see why it ends.",
    )
