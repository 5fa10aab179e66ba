"""From what a recipe names to a teacher.

::

    builtin                     the two that come with pocketlens
    PATH                        a folder; its files say what it is
    open_clip:NAME[@PRETRAINED] a model that open_clip has built in, with weights from the hub
    hf:NAME                     a dual encoder or a captioner on the hub, or in a folder
    [NAME, NAME, …]             an ensemble of embedding teachers

Hub access is the library's own; without a network, folders and what lies in its cache can be opened.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pocketlens.core.errors import TeacherError
from pocketlens.distill.teachers.folder import TeacherCard, card_of, read_card
from pocketlens.distill.teachers.teacher import CaptioningTeacher, EmbeddingTeacher
from pocketlens.distill.teachers.weights import builtin_folder

__all__ = ["captioner_card", "embedder_card", "open_captioner", "open_embedder"]

_OPEN_CLIP: Final = "open_clip:"
_HUGGING_FACE: Final = "hf:"
_BUILTIN: Final = "builtin"
_Role = Literal["embedder", "captioner"]
Names = str | Sequence[str]


def open_embedder(names: Names) -> EmbeddingTeacher:
    """Return the embedding teacher that the recipe names (see the module).

    Raises:
        TeacherError: it cannot be opened.
    """
    if not isinstance(names, str):
        from pocketlens.distill.teachers.ensemble import EnsembleTeacher

        if not names:
            raise TeacherError("teachers.embedder", expected="at least one name", found="none", remedy="Name one.")
        return EnsembleTeacher([open_embedder(name) for name in names])
    if names.startswith(_OPEN_CLIP):
        from pocketlens.distill.teachers.open_clip_teacher import OpenClipTeacher

        return OpenClipTeacher(names.removeprefix(_OPEN_CLIP))
    if names.startswith(_HUGGING_FACE):
        from pocketlens.distill.teachers.hf_dual_encoder import HfDualEncoder

        return HfDualEncoder(names.removeprefix(_HUGGING_FACE))
    folder = _folder(names, "embedder")
    if (folder / "towers.json").exists():
        from pocketlens.distill.teachers.towers import FrozenTowers

        return FrozenTowers(str(folder))
    if (folder / "image_encoder.onnx").exists():
        from pocketlens.distill.teachers.onnx_pair import OnnxPair

        return OnnxPair(str(folder))
    if (folder / "open_clip_config.json").exists() or not (folder / "config.json").exists():
        from pocketlens.distill.teachers.open_clip_teacher import OpenClipTeacher

        return OpenClipTeacher(folder)
    from pocketlens.distill.teachers.hf_dual_encoder import HfDualEncoder

    return HfDualEncoder(str(folder))


def open_captioner(name: str, *, prompt: str | None = None, max_tokens: int = 32) -> CaptioningTeacher:
    """Return the captioning teacher that the recipe names (see the module).

    Args:
        name: the name.
        prompt: what a chat model is asked.
        max_tokens: captions are cut after this many new tokens.

    Raises:
        TeacherError: it cannot be opened.
    """
    from pocketlens.distill.teachers.hf_captioner import DEFAULT_PROMPT, open_hf_captioner

    place = name.removeprefix(_HUGGING_FACE) if name.startswith(_HUGGING_FACE) else str(_folder(name, "captioner"))
    return open_hf_captioner(place, prompt=prompt or DEFAULT_PROMPT, max_tokens=max_tokens)


def embedder_card(names: Names) -> TeacherCard:
    """Return who the embedding teacher is, without opening it.

    Raises:
        TeacherError: there is no such folder, or its card is malformed.
    """
    if isinstance(names, str):
        return _card(names, "embedder")
    cards = [_card(name, "embedder") for name in names]
    licences = dict.fromkeys(card.licence for card in cards)
    return TeacherCard(id=" + ".join(card.id for card in cards), licence=" AND ".join(licences))


def captioner_card(name: str) -> TeacherCard:
    """Return who the captioning teacher is, without opening it; errors as in `embedder_card`."""
    return _card(name, "captioner")


def _card(name: str, role: _Role) -> TeacherCard:
    for prefix in (_OPEN_CLIP, _HUGGING_FACE):
        if name.startswith(prefix):
            return card_of(name.removeprefix(prefix))
    return read_card(_folder(name, role))


def _folder(name: str, role: _Role) -> Path:
    return builtin_folder(role) if name == _BUILTIN else Path(name)
