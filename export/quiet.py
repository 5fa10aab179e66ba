"""Keeps the chatter of other people's exporters off the user's terminal."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log records, prints and progress bars of the third-party calls inside.

    The exporters of torch, ONNX Runtime, ExecuTorch and coremltools warn about their own internals
    (deprecated calls among themselves, operators that they skip). None of it is for the user; what
    goes wrong is an exception, and those pass through.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
