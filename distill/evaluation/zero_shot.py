"""Zero-shot classification with prompt ensembles: classes, templates and labels from a file.

TOML, `format = 1`::

    templates = ["a photo of a {}.", "a blurry picture of a {}."]

    [classes]
    dog = ["dog", "puppy"]        # every name in every template; their mean is the class

    [labels]                      # optional: the class of each picture, by its id
    "test/000001" = "dog"

Without `[labels]`, the label of a picture is its only `kind`, or else the folder that it is in (`…/dog/001.jpg`).
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.scenes.caption import class_prompts

__all__ = ["ClassPrompts", "labels_of", "read_class_prompts", "scene_prompts"]


class ClassPrompts(msgspec.Struct, frozen=True):
    """The texts of each class, and the labels that the file gives."""

    prompts: dict[str, tuple[str, ...]]
    labels: dict[str, str] = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    templates: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    labels: dict[str, str] = {}


def scene_prompts() -> ClassPrompts:
    """Return the prompts of the built-in scenes."""
    return ClassPrompts(class_prompts())


def read_class_prompts(path: Path) -> ClassPrompts:
    """Return the prompts in the file at `path`: each template with each name of a class.

    Raises:
        DataError: it cannot be read or is malformed, or a label is no class.
    """
    try:
        table = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise DataError(
            str(path), expected="classes and templates (TOML)", found=str(error), remedy="See docs/evaluation.md."
        ) from error
    stray = sorted(set(table.labels.values()) - set(table.classes))
    bare = [name for name, names in table.classes.items() if not names]
    dull = [text for text in table.templates if "{}" not in text]
    if table.format != 1 or not table.templates or len(table.classes) < 2 or stray or bare or dull:
        raise DataError(
            str(path),
            expected="format 1, templates with {}, at least two classes with names, labels out of the classes",
            found=f"format {table.format}, {len(table.templates)} templates, {len(table.classes)} classes; "
            f"not fitting: {', '.join([*stray, *bare, *dull]) or 'nothing'}",
            remedy="See docs/evaluation.md.",
        )
    prompts = {
        kind: tuple(template.replace("{}", name) for name in names for template in table.templates)
        for kind, names in table.classes.items()
    }
    return ClassPrompts(prompts, table.labels)


def labels_of(samples: Sequence[Sample], classes: ClassPrompts) -> NDArray[np.intp]:
    """Return `(N,)`: the row of each picture's class, -1 for a picture without one."""
    rows = {kind: row for row, kind in enumerate(classes.prompts)}
    return np.array([rows.get(_label(sample, classes), -1) for sample in samples], dtype=np.intp)


def _label(sample: Sample, classes: ClassPrompts) -> str:
    if classes.labels:
        return classes.labels.get(sample.id, "")
    if sample.kinds:
        return sample.kinds[0] if len(sample.kinds) == 1 else ""
    return PurePosixPath(sample.image.replace("\\", "/")).parent.name
