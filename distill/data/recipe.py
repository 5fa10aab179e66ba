"""The `[data]` table of a recipe: one type for each kind of source."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "CaptionsData",
    "CocoData",
    "CurateRecipe",
    "DataRecipe",
    "KarpathyData",
    "PicturesData",
    "ScenesData",
    "SplitFiles",
    "WebdatasetData",
]

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="source"):
    pass


class CurateRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is thrown away before training. Everything dropped is listed with its reason.

    Attributes:
        min_chars, max_chars: length of a caption after cleaning, in characters.
        min_letters: the least share of a caption's characters, spaces left out, that are letters, marks or digits.
        max_repeats: a caption that more than so many pictures have says nothing about any of them; 0 for no limit.
        near_distance: pictures whose 128-bit difference hashes differ in at most so many bits are near-duplicates;
            -1 switches the search off. At most 7.
        near_cosine: pictures whose embeddings by the embedding teacher have at least this cosine are near-duplicates;
            1 switches it off.
        max_broken: largest share of records that may be broken before the data set is refused.
        uncaptioned: whether a picture without any caption left is kept for the captioning teacher; those of a folder
            of pictures always are.
    """

    min_chars: Count = 3
    max_chars: Positive = 1000
    min_letters: Share = 0.6
    max_repeats: Count = 100
    near_distance: Annotated[int, Meta(ge=-1, le=7)] = 4
    near_cosine: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    max_broken: Share = 0.5
    uncaptioned: Literal["keep", "drop"] = "drop"


class ScenesData(_Table, frozen=True, kw_only=True, tag="scenes"):
    """The built-in `scenes`: pictures per split and their side in pixels."""

    train: Positive
    val: Positive
    test: Positive
    train_px: Positive = 128
    test_px: Positive = 256


class _Foreign(_Table, frozen=True, kw_only=True):
    """What all sources from outside have in common.

    Attributes:
        name: of the data set; goes into each sample, manifest and card.
        licence: of pictures and captions, likewise.
        val, test: where the source has no such split: so many pictures are taken from `train` for it, chosen by a
            hash of their names.
        curate: what is thrown away.
    """

    name: str
    licence: str = "unknown"
    val: Count = 0
    test: Count = 0
    curate: CurateRecipe = CurateRecipe()


class SplitFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The files of one split: a list of captions, and the folder or tar of its pictures."""

    captions: str
    images: str = "."


class CaptionsData(_Foreign, frozen=True, kw_only=True, tag="captions"):
    """A list of captions as CSV, TSV, JSONL or Parquet, and a folder or tar of pictures.

    Attributes:
        splits: the files by split.
        image_key: column or key of the picture's name.
        captions_key: column or key of a caption, or of a list of them. Rows of one picture are joined.
        encoding: of CSV, TSV and JSONL.
    """

    splits: dict[str, SplitFiles]
    image_key: str = "image"
    captions_key: str = "captions"
    encoding: str = "utf-8"


class CocoData(_Foreign, frozen=True, kw_only=True, tag="coco"):
    """COCO captions: `captions_train2017.json` and its like, by split."""

    splits: dict[str, SplitFiles]


class KarpathyData(_Foreign, frozen=True, kw_only=True, tag="karpathy"):
    """Karpathy's `dataset.json` for Flickr8k, Flickr30k or COCO: all splits in one file.

    Attributes:
        path: the file.
        images: folder or tar of the pictures.
        restval: the split that its fourth one, `restval`, goes to.
    """

    path: str
    images: str
    restval: Literal["train", "val", "drop"] = "train"


class WebdatasetData(_Foreign, frozen=True, kw_only=True, tag="webdataset"):
    """Tars as img2dataset writes them: `key.jpg` beside `key.txt` or `key.json`.

    Attributes:
        splits: glob patterns of tars by split.
        caption_key: key of the caption in `key.json`, where there is no `key.txt`.
    """

    splits: dict[str, tuple[str, ...]]
    caption_key: str = "caption"


class PicturesData(_Foreign, frozen=True, kw_only=True, tag="pictures"):
    """A folder of pictures without captions, with everything below it: the captioning teacher describes them."""

    path: str


DataRecipe = ScenesData | CaptionsData | CocoData | KarpathyData | WebdatasetData | PicturesData
