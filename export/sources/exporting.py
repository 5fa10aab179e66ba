"""`pocketlens export open_clip:NAME …`: one call from a model's name to a bundle."""

from pathlib import Path
from typing import Literal

from pocketlens.core.bundle import Bundle, TeacherRecord
from pocketlens.export.pipeline import Progress, export_student
from pocketlens.export.recipe import ExportRecipe
from pocketlens.export.sources.captioned import read_captioned, samples_of, split_captioned
from pocketlens.export.sources.opening import open_source
from pocketlens.export.sources.quality import judge

__all__ = ["export_direct"]


def export_direct(
    source: str,
    out: Path,
    *,
    recipe: ExportRecipe,
    pictures: Path,
    name: str | None = None,
    licence: str | None = None,
    commercial: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Bundle:
    """Export the model `source` as the bundle `out`, judged on the user's pictures, and return it.

    Args:
        source: such as `open_clip:MobileCLIP2-S0`; see `pocketlens.export.sources.opening`.
        out: the bundle's folder.
        recipe: what is exported and what it must reach.
        pictures: JSON lines of pictures with captions; see `pocketlens.export.sources.captioned`. Every fifth
            calibrates, the others are judged on.
        name: the bundle's name; by default the model's.
        licence: of the bundle; by default the model's own, `unknown` where its folder does not say.
        commercial: refuse licences that forbid commercial use.
        progress: see `Progress`.

    Raises:
        DataError: the pictures' file does not fit.
        PictureError: a picture was refused.
        ExportError: the model cannot be opened or a target cannot be produced; `ParityGateFailed` or
            `SpeedGateFailed`: a graph does not reach what the recipe asks for.
        StorageFull: no space left.
    """
    judged, held = split_captioned(read_captioned(pictures))
    opened = open_source(source)
    task: Literal["captioning", "embedding"] = "embedding" if opened.model.caption is None else "captioning"
    return export_student(
        source,
        out,
        recipe=recipe,
        test=samples_of(judged),
        calibration=samples_of(held),
        name=name or opened.id.rpartition("/")[2],
        licence=licence or opened.licence,
        teachers=[TeacherRecord(id=opened.id, licence=opened.licence, task=task)],
        evaluate=judge(opened, judged, seed=recipe.seed, gates=recipe.gates),
        commercial=commercial,
        progress=progress,
    )
