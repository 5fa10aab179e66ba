"""The service as a process: it listens, answers, and ends cleanly when told to."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from fastapi import FastAPI

from pocketlens.cloud_fallback.service import serve
from pocketlens.core.errors import CloudError

PROGRAM = """
from pocketlens.cloud_fallback.service import create_app, serve

class Constant:
    model = "constant-1"

    def caption(self, picture):
        return "a picture"

serve(create_app(Constant()), port=0)
"""


@pytest.mark.skipif(os.name == "nt", reason="ends with a POSIX signal")
def test_the_service_listens_answers_and_ends_on_interrupt() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            port = next(found[1] for line in process.stderr if (found := re.search(r"127\.0\.0\.1\D+(\d+)", line)))
            answer = httpx.get(f"http://127.0.0.1:{port}/healthz")
        finally:
            process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert answer.json() == {"status": "ok", "model": "constant-1"}
    assert "server" not in answer.headers
    assert process.returncode == 0
    assert "Traceback" not in rest


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1", "no such host"])
def test_an_address_that_cannot_be_had_is_one_typed_error(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CloudError, match="listening on"):
        serve(FastAPI(), host=host, port=taken.getsockname()[1])


def test_a_port_out_of_range_is_one_typed_error() -> None:
    with pytest.raises(CloudError, match="70000"):
        serve(FastAPI(), port=70000)
