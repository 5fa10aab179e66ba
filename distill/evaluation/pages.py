"""What the report and the rating sheet share: one template engine, and small pictures as data URIs."""

import base64
import io
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from PIL import Image

from pocketlens.core.decode import decode_image
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.distill.data.sample import PictureFile, as_source

__all__ = ["render", "thumbnail"]

_SIDE_PX: Final = 320
_LIMITS: Final = PreprocessSpec(height_px=_SIDE_PX, width_px=_SIDE_PX)


def thumbnail(picture: PictureFile) -> str:
    """Return the picture, at most 320 px wide and high and free of metadata, as a data URI.

    Raises:
        PictureError: it cannot be read.
    """
    image = decode_image(as_source(picture), _LIMITS)
    image.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def render(template: str, **content: Any) -> str:
    """Return the page that `template`, a file beside this module, makes of `content`."""
    return _environment().from_string(_source(template)).render(style=_source("pages.css"), **content)


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _source(name: str) -> str:
    return resources.files("pocketlens.distill.evaluation").joinpath(name).read_text(encoding="utf-8")
