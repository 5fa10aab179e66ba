"""From what a user names to a model that can be exported.

::

    RUN                         a student folder: student.json, student.safetensors, tokenizer.json
    open_clip:NAME              a model that open_clip has built in, with the first weights that it lists
    open_clip:NAME@PRETRAINED   … with the weights of that tag; `random` for random ones
    open_clip:local-dir:PATH    a folder in open_clip's format
    hf:PATH_OR_NAME             CLIP, SigLIP or a BLIP captioner as transformers saves them
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pocketlens.core.errors import ExportError
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.students.student import load_student
from pocketlens.export.sources.exportable import OpenedSource, exportable_of
from pocketlens.export.sources.folder import source_errors

__all__ = ["is_direct", "open_source"]

_OPEN_CLIP: Final = "open_clip:"
_HUGGING_FACE: Final = "hf:"
_STUDENT_FILES: Final = ("student.json", "student.safetensors", "tokenizer.json")


def is_direct(source: str) -> bool:
    """Whether `source` names a model of another library, not a training run."""
    return source.startswith((_OPEN_CLIP, _HUGGING_FACE))


@lru_cache(maxsize=1)
def open_source(source: str) -> OpenedSource:
    """Return what `source` names (see the module), in eval mode. The last one is kept in memory.

    Raises:
        DataError: a student folder that does not fit.
        ExportError: a model that cannot be opened or carried over.
    """
    if source.startswith(_OPEN_CLIP):
        from pocketlens.export.sources.open_clip import open_open_clip

        return open_open_clip(source.removeprefix(_OPEN_CLIP))
    if source.startswith(_HUGGING_FACE):
        return _hugging_face(source.removeprefix(_HUGGING_FACE))
    folder = Path(source)
    student, tokenizer = load_student(folder)
    digest = hashlib.sha256()
    for name in _STUDENT_FILES:
        digest.update((folder / name).read_bytes())
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return OpenedSource(exportable_of(student), tokenizer, text, folder.resolve().name, "unknown", digest.hexdigest())


def _hugging_face(name: str) -> OpenedSource:
    from transformers import AutoConfig

    what = f"{_HUGGING_FACE}{name}"
    with source_errors(what, "a model folder that save_pretrained wrote, or a name on the hub"), quiet_loading():
        config: Any = AutoConfig.from_pretrained(name)
    kinds = config.architectures or [type(config).__name__.replace("Config", "Model")]
    openers: dict[str, Callable[[str], OpenedSource]] = {
        "CLIPModel": _dual_encoder,
        "SiglipModel": _dual_encoder,
        "BlipForConditionalGeneration": _captioner,
    }
    if kinds[0] not in openers:
        raise ExportError(
            f"source {what}",
            expected=f"one of {', '.join(openers)}: a whole model, with the parts of both sides",
            found=", ".join(kinds),
            remedy="Save the whole model. A part of one (CLIPVisionModel, SiglipTextModel) and other architectures "
            "are not exported directly: distil them into a student instead.",
        )
    return openers[kinds[0]](name)


def _dual_encoder(name: str) -> OpenedSource:
    from pocketlens.export.sources.dual_encoder import open_dual_encoder

    return open_dual_encoder(name)


def _captioner(name: str) -> OpenedSource:
    from pocketlens.export.sources.captioner import open_captioner

    return open_captioner(name)
