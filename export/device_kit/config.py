"""`pocketlens_config.h`: what the C side has to know about one bundle."""

from typing import Final

from pocketlens.core.bundle import CaptionSpec, TokenizerSpec
from pocketlens.core.preprocess import PreprocessSpec

__all__ = ["c_string", "config_header"]


def config_header(
    *,
    name: str,
    model_version: str,
    preprocess: PreprocessSpec,
    tokenizer: TokenizerSpec,
    caption: CaptionSpec | None,
) -> str:
    """Return the text of `pocketlens_config.h`."""
    return _HEADER.format(
        name=c_string(name),
        model_version=c_string(model_version),
        height=preprocess.height_px,
        width=preprocess.width_px,
        fit=preprocess.fit.upper(),
        filter=preprocess.filter.upper(),
        matte=", ".join(map(str, preprocess.matte)),
        pad_colour=", ".join(map(str, preprocess.pad_colour)),
        max_pixels=preprocess.max_pixels,
        max_aspect=preprocess.max_aspect,
        max_bytes=preprocess.max_bytes,
        text_length=tokenizer.text_length,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        caption_prefix=0 if caption is None else caption.prefix_length,
        caption_tokens=0 if caption is None else caption.max_tokens,
    )


def c_string(text: str) -> str:
    """Return `text` as a C string literal: all but letters, digits and `_-. ` in octal."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. "
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


_HEADER: Final = """\
/*
 * pocketlens_config.h: the numbers of one bundle. Written by `pocketlens export` from its manifest; belongs to the
 * graphs and the tokenizer.bin of the same bundle and to no other.
 */
#ifndef POCKETLENS_CONFIG_H
#define POCKETLENS_CONFIG_H

#include "pocketlens_preprocess.h"

#define PL_CONFIG_NAME {name}
#define PL_CONFIG_MODEL_VERSION {model_version}

/* The picture that the image encoder takes: uint8 (height, width, 3), RGB. */
#define PL_CONFIG_HEIGHT {height}
#define PL_CONFIG_WIDTH {width}
#define PL_CONFIG_PIXEL_BYTES ((size_t)PL_CONFIG_HEIGHT * PL_CONFIG_WIDTH * 3u)

/* Initialises a pl_spec: height, width, fit, filter, matte, pad colour, most pixels, greatest aspect ratio. */
#define PL_CONFIG_SPEC \\
    {{ PL_CONFIG_HEIGHT, PL_CONFIG_WIDTH, PL_{fit}, PL_{filter}, \\
      {{ {matte} }}, {{ {pad_colour} }}, {max_pixels}, {max_aspect} }}

/* The same as a value, for languages that do not import the macro. */
static inline pl_spec pl_config_spec(void) {{
    const pl_spec spec = PL_CONFIG_SPEC;
    return spec;
}}

/* Encoded files with more bytes are refused before they are decoded. */
#define PL_CONFIG_MAX_FILE_BYTES {max_bytes}

/* The text encoder takes int32 (1, text length). */
#define PL_CONFIG_TEXT_LENGTH {text_length}
#define PL_CONFIG_VOCAB_SIZE {vocab_size}
#define PL_CONFIG_PAD_ID {pad_id}
#define PL_CONFIG_BOS_ID {bos_id}
#define PL_CONFIG_EOS_ID {eos_id}

/* The caption cache: visual positions, then text positions; 0 and 0 for a bundle that does not caption. */
#define PL_CONFIG_CAPTION_PREFIX {caption_prefix}
#define PL_CONFIG_CAPTION_TOKENS {caption_tokens}

#endif /* POCKETLENS_CONFIG_H */
"""
