"""The built-in teachers' weights; `python -m pocketlens.distill.teachers.builtin` makes them from nothing."""

from pathlib import Path
from typing import Literal

__all__ = ["builtin_folder"]


def builtin_folder(role: Literal["embedder", "captioner"]) -> Path:
    """Return the folder of a built-in teacher."""
    return Path(__file__).parent / f"scenes-{role}"
