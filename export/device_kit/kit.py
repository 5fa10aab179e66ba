"""Put the device kit into a bundle: headers, what they need to know about it, a self-test, usage."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pocketlens.core
from pocketlens.core.bundle import CaptionSpec, TokenizerSpec
from pocketlens.core.errors import storage_errors
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.export.device_kit.config import config_header
from pocketlens.export.device_kit.golden_header import golden_header
from pocketlens.export.device_kit.tokenizer_file import tokenizer_bin

__all__ = ["DEVICE_KIT_FOLDER", "write_device_kit"]

DEVICE_KIT_FOLDER: Final = "device_kit"
"""Name of the kit's folder in a bundle."""

_FOLDERS: Final = tuple(Path(__file__).parent / name for name in ("c", "usage"))
_PREPROCESSING: Final = Path(pocketlens.core.__file__).parent / "c" / "pocketlens_preprocess.h"
"""Core's: the same header is compiled into the Python package."""


def write_device_kit(
    folder: Path,
    *,
    name: str,
    model_version: str,
    preprocess: PreprocessSpec,
    tokenizer_json: Path,
    tokenizer: TokenizerSpec,
    caption: CaptionSpec | None = None,
    texts: Sequence[str] = (),
) -> Path:
    """Write `folder / "device_kit"` and return it.

    ::

        device_kit/
          README.md                  how to build it in, in C, Swift and Kotlin
          pocketlens_preprocess.h    the same for every bundle, like all headers but two
          pocketlens_tokenizer.h     and its parts: pocketlens_normalizer.h, pocketlens_unicode.h
          pocketlens_kit.c           the one file that compiles them
          pocketlens_config.h        this bundle's spec, lengths and ids
          tokenizer.bin              this bundle's tokenizer.json, flat
          pocketlens_selftest.c      with pocketlens_golden.h: is this build exact?
          swift/  android/           bindings

    Nothing depends on time, machine or chance: the same bundle gets the same bytes.

    Args:
        folder: the bundle, while it is staged: `write_bundle` lists and hashes what it finds.
        name: the bundle's name.
        model_version: the bundle's model version.
        preprocess: the bundle's preprocessing spec.
        tokenizer_json: the bundle's tokenizer file.
        tokenizer: the manifest's record of it.
        caption: the layout of the caption cache; `None` for a bundle that does not caption.
        texts: texts of the bundle that the self-test encodes, besides the built-in ones.

    Raises:
        BundleSchemaError: `tokenizer_json` is missing or no tokenizer.
        ExportError: the tokenizer has a feature that the header does not implement.
        StorageFull: no space left.
    """
    flat = tokenizer_bin(tokenizer_json, tokenizer)
    backend = Tokenizer.from_file(tokenizer_json, text_length=tokenizer.text_length)
    written = {
        "pocketlens_config.h": config_header(
            name=name, model_version=model_version, preprocess=preprocess, tokenizer=tokenizer, caption=caption
        ),
        "pocketlens_golden.h": golden_header(preprocess, backend, texts),
    }
    kit = folder / DEVICE_KIT_FOLDER
    with storage_errors(kit):
        for source in _FOLDERS:
            # No metadata: whoever copies a bundle gets plain files with the permissions of the day.
            shutil.copytree(source, kit, dirs_exist_ok=True, copy_function=shutil.copyfile)
        shutil.copyfile(_PREPROCESSING, kit / _PREPROCESSING.name)
        for file, text in written.items():
            (kit / file).write_text(text, encoding="utf-8")
        (kit / "tokenizer.bin").write_bytes(flat)
    return kit
