"""Other libraries' chatter while models load: progress bars and notes that no user of ours can act on."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet_loading", "quiet_tracing"]


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hold back log records below an error, stdout and transformers' progress bars; restore afterwards."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # stdout is where our own results go
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Hold back the warnings of torch.export, torchao and executorch about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
