"""Student to bundle: every target, parity on real pictures, and gates that say no.

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pocketlens.export.diagnosis import Diagnosis, diagnose_port, diagnose_tensors
    from pocketlens.export.pipeline import Evaluation, export_student, update_manifest
    from pocketlens.export.recipe import VARIANTS, ExportRecipe, Gates, load_recipe
    from pocketlens.export.reference import Samples
    from pocketlens.export.verify import VerifyReport, verify_bundle

__all__ = [
    "VARIANTS",
    "Diagnosis",
    "Evaluation",
    "ExportRecipe",
    "Gates",
    "Samples",
    "VerifyReport",
    "diagnose_port",
    "diagnose_tensors",
    "export_student",
    "load_recipe",
    "update_manifest",
    "verify_bundle",
]

_HOMES: Final = {
    "VARIANTS": "recipe",
    "Diagnosis": "diagnosis",
    "Evaluation": "pipeline",
    "ExportRecipe": "recipe",
    "Gates": "recipe",
    "Samples": "reference",
    "VerifyReport": "verify",
    "diagnose_port": "diagnosis",
    "diagnose_tensors": "diagnosis",
    "export_student": "pipeline",
    "load_recipe": "recipe",
    "update_manifest": "pipeline",
    "verify_bundle": "verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
