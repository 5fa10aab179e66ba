"""Students: small models with one image tower for embedding and caption."""

from pocketlens.distill.students.config import PRESETS, StudentConfig

__all__ = ["PRESETS", "StudentConfig"]
