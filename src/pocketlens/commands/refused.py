"""How a command ends that had to leave pictures out."""

from typing import TYPE_CHECKING

from pocketlens.console import say, show_json

if TYPE_CHECKING:
    from pocketlens.runtime.results import Refusal

__all__ = ["SOME_REFUSED", "list_refused"]

SOME_REFUSED = 1
"""Exit code: everything was done but for the pictures that were refused."""


def list_refused(refused: "list[Refusal]", files: list[str], *, as_json: bool) -> int:
    """List refused pictures on stderr and return the exit code.

    Raises:
        PictureError: the only picture was refused.
    """
    if refused and len(files) == 1:
        raise refused[0].error
    for refusal in refused:
        if as_json:
            show_json({"file": files[refusal.index], **refusal.error.fields()})
        else:
            say(f"refused {refusal.error.kind}: {refusal.error}")
    if refused and not as_json:
        say(f"{len(files) - len(refused)} of {len(files)} pictures done, {len(refused)} refused")
    return SOME_REFUSED if refused else 0
