"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["AsJson", "BundlePath", "Engine", "Files", "Precision", "Threads", "Untrusted", "decoded_in"]

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Picture files.", show_default=False)]

BundlePath = Annotated[
    Path,
    typer.Option(
        "--bundle",
        "-b",
        envvar="POCKETLENS_BUNDLE",
        help="The bundle's folder.",
        show_default=False,
        readable=False,  # not to be checked here: what cannot be read is a typed error
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write results as JSON lines.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help="onnxruntime[:cuda|tensorrt|coreml|qnn], executorch or coreml; several by commas.",
        show_default="what tune measured fastest, else onnxruntime",
    ),
]
Precision = Annotated[
    str | None, typer.Option(help="fp32, int8, ...", show_default="the preferred one that was measured fastest")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of one call.", show_default="one a core")]
Untrusted = Annotated[
    bool, typer.Option("--untrusted", help="Decode in other processes, with limits: for files of unknown origin.")
]


def decoded_in(untrusted: bool) -> Literal["in_process", "worker"]:
    """Return where pictures are decoded, as `pocketlens.load` is told it."""
    return "worker" if untrusted else "in_process"
