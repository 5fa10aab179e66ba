"""The decoding process: python -m pocketlens.runtime.picture_worker.child SOCKET LIMITS.

Imports what it needs, limits itself, then decodes one picture after the other until the host closes the
socket. From then on it can open no file and reserve no memory beyond its limit; processor time is limited
anew for every picture. It never sees a path. What it cannot answer for (a crash, a loop) ends it, and the
host starts another one.

What this is not: a jail. It runs as the same user, with an environment without the host's variables.
"""

import gc
import json
import math
import os
import resource
import signal
import socket
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.picture_gate import refusal
from pocketlens.core.picture_header import stated_size
from pocketlens.core.preprocess import preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.limits import address_space, limit, resident_bytes
from pocketlens.runtime.picture_worker.protocol import (
    BEGAN,
    FRAME,
    PIXELS,
    READY,
    REFUSED,
    REQUEST,
    Refused,
    WorkerLimits,
)

__all__ = ["main"]

# Pages of libraries that are mapped at the start and come into memory later.
_LATER_BYTES: Final = 24 * 2**20

_JPEG_HEAD_BYTES: Final = 2**20
# The two slow formats, HEIF and AVIF, are the ones whose libraries can use several threads.
_THREADS: Final = min(4, os.cpu_count() or 1)


def main() -> None:
    """Serve the socket whose number is the first argument, within the limits that are the second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the host, which ends this process
    channel = socket.socket(fileno=int(sys.argv[1]))
    limits = msgspec.json.decode(sys.argv[2], type=WorkerLimits)
    _load_decoders()
    _confine(limits)
    gc.freeze()
    channel.sendall(FRAME.pack(READY, 0))
    requests = channel.makefile("rb")
    specs = msgspec.json.Decoder(PreprocessSpec)
    try:
        while True:
            _serve(channel, requests, specs, limits)
    except (EOFError, ConnectionError):
        pass
    os._exit(0)  # the host is gone; nothing here needs a tidy end


def _load_decoders() -> None:
    """Import every decoder now, for later no file can be opened."""
    Image.init()
    avif: Any = import_module("PIL.AvifImagePlugin")
    avif.DEFAULT_MAX_THREADS = _THREADS
    if find_spec("pillow_heif") is not None:
        options: Any = import_module("pillow_heif.options")
        options.DECODE_THREADS = _THREADS
        options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
        import_module("pillow_heif.as_plugin")


def _confine(limits: WorkerLimits) -> None:
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    if size := address_space():
        limit(resource.RLIMIT_AS, size + max(2**24, limits.memory_bytes - resident_bytes() - _LATER_BYTES))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # until here stderr told the host why a start failed
    os.close(nowhere)
    limit(resource.RLIMIT_NOFILE, 1 + max(number for number in range(256) if _is_open(number)))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _serve(
    channel: socket.socket, requests: BinaryIO, specs: "msgspec.json.Decoder[PreprocessSpec]", limits: WorkerLimits
) -> None:
    spec_length, length = REQUEST.unpack(_read(requests, REQUEST.size))
    spec = specs.decode(_read(requests, spec_length))
    data = _read(requests, length)
    channel.sendall(FRAME.pack(BEGAN, 0))
    _limit_time(limits)
    answer = _answer(data, spec, limits)
    del data
    signal.setitimer(signal.ITIMER_REAL, 0)
    if isinstance(answer, Refused):
        body = json.dumps(msgspec.to_builtins(answer)).encode()
        channel.sendall(FRAME.pack(REFUSED, len(body)) + body)
    else:
        channel.sendall(FRAME.pack(PIXELS, answer.nbytes))
        channel.sendall(answer.data)


def _read(requests: BinaryIO, length: int) -> bytes:
    data = requests.read(length)  # of a buffered file: read at once into its final place
    if len(data) < length:
        raise EOFError("the host is gone")
    return data


def _limit_time(limits: WorkerLimits) -> None:
    """End this process when the picture takes too long and the host is not there to do it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime) + limits.cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s + 1.0)  # SIGALRM ends it, also inside a library


def _answer(data: bytes, spec: PreprocessSpec, limits: WorkerLimits) -> NDArray[np.uint8] | Refused:
    try:
        return np.ascontiguousarray(preprocess(data, spec))
    except PictureError as error:
        if error.kind == "corrupt" and _outgrows(data, limits):
            error = refusal(MemoryError(), "a progressive JPEG file", error.what, spec)
        return Refused(error.kind, error.expected, error.found, error.remedy)


def _outgrows(data: bytes, limits: WorkerLimits) -> bool:
    """Whether libjpeg, which calls it broken data, more likely ran out of memory.

    It holds all coefficients of a progressive picture, 2 bytes each, beside Pillow's 4 bytes a pixel.
    """
    size = stated_size(data) if data.startswith(b"\xff\xd8") and b"\xff\xc2" in data[:_JPEG_HEAD_BYTES] else None
    return size is not None and size[0] * size[1] * 10 > limits.memory_bytes - 2**26


if __name__ == "__main__":
    main()
