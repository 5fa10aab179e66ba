"""One module for each format in which captioned pictures lie on disk.

Each has `read(settings, base)`, a generator of `Record` and `Broken` in the order of the files. What concerns one
record (a picture that is not there, a line that is no JSON) is `Broken`; what concerns the whole source is a
`DataError`.
"""

from collections.abc import Iterator
from pathlib import Path

from pocketlens.distill.data.recipe import (
    CaptionsData,
    CocoData,
    KarpathyData,
    PicturesData,
    WebdatasetData,
)
from pocketlens.distill.data.record import Found
from pocketlens.distill.data.sources import captions, coco, karpathy, pictures, webdataset

__all__ = ["Foreign", "read_source"]

Foreign = CaptionsData | CocoData | KarpathyData | WebdatasetData | PicturesData


def read_source(settings: Foreign, base: Path) -> Iterator[Found]:
    """Yield what the source has.

    Args:
        settings: the recipe's `[data]`.
        base: what its relative paths are relative to: the folder of the recipe.

    Raises:
        DataError: a file of the source is missing, unreadable or of another format.
    """
    match settings:
        case CaptionsData():
            return captions.read(settings, base)
        case CocoData():
            return coco.read(settings, base)
        case KarpathyData():
            return karpathy.read(settings, base)
        case WebdatasetData():
            return webdataset.read(settings, base)
        case PicturesData():
            return pictures.read(settings, base)
