"""Pictures and texts that the device kit is compared on, with what pocketlens makes of them."""

import functools
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from pocketlens.core.bundle import TokenizerSpec
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.export.device_kit.golden_header import PIXEL_FORMATS
from pocketlens.export.device_kit.tokenizer_file import tokenizer_bin
from tests.device_kit.toolchain import FILTERS, FITS, Case

__all__ = [
    "TEXT_LENGTH",
    "expected_pixels",
    "flat_file",
    "foreign_tokenizer",
    "large_pictures",
    "one_pixel_pictures",
    "pictures",
    "strings",
    "tokenizer_files",
    "trained_tokenizer",
]

TEXT_LENGTH: Final = 24

_TEXTS: Final = (
    "a cat on a sofa and the dog's ball; they'll say we've 12 of them",
    "ein M\u00e4dchen \u00fcber dem Gro\u00dfen Haus, \u00e9t\u00e9 caf\u00e9 na\u00efve",
    "\u0394\u03b5\u03bd \u03ae\u03be\u03b5\u03c1\u03b1 \u03c3\u03c4\u03b9\u03c2 \u03bc\u03af\u03b1",
    "\ud55c\uad6d\uc5b4 \uac15\uc544\uc9c0 \uace0\uc591\uc774 \ud55c\uad6d",
    "\u65e5\u672c\u8a9e \u732b \u72ac \U0001f408 \U0001f408 \U0001f469\U0001f3fd",
    "aaaa aaaaaaaa abababab  \t\n  ...!!! ??? 1234 2024",
)


def expected_pixels(case: Case) -> NDArray[np.uint8]:
    """Return what `pocketlens.core` makes of a case; the EXIF tag is applied by its own code."""
    mode = PIXEL_FORMATS[case.format]
    image = Image.frombytes(mode, case.pixels.shape[1::-1], case.pixels.tobytes())
    if mode == "RGBX":
        image = image.convert("RGB")
    image.getexif()[0x0112] = case.orientation
    return preprocess(image, case.spec)


def _case(draw: random.Random, height: int, width: int, spec: PreprocessSpec, orientation: int, number: int) -> Case:
    rng = np.random.default_rng(draw.getrandbits(32))
    pixels = rng.integers(0, 256, (height, width, 3 if number == 0 else 4), dtype=np.uint8)
    if number in (1, 2):
        # Opaque and clear pixels are the common ones, and have branches of their own.
        kind = rng.integers(0, 3, (height, width))
        pixels[..., 3] = np.where(kind == 0, 255, np.where(kind == 1, 0, pixels[..., 3]))
    return Case(pixels, spec, orientation, number, padding=draw.choice((0, 0, 1, 13)))


def _spec(draw: random.Random, fit: str, name: str, most: int) -> PreprocessSpec:
    def colour() -> tuple[int, int, int]:
        return (draw.randrange(256), draw.randrange(256), draw.randrange(256))

    return PreprocessSpec(
        height_px=draw.randint(1, most),
        width_px=draw.randint(1, most),
        fit=fit,  # type: ignore[arg-type]
        filter=name,  # type: ignore[arg-type]
        matte=colour(),
        pad_colour=colour(),
    )


def pictures() -> list[Case]:
    """Return 624 pictures: each orientation, fit, filter and byte order in turn, and sides from 1 up."""
    draw = random.Random(3)
    cases = []
    for fit in FITS:
        for name in FILTERS:
            for orientation in range(1, 9):
                for number in range(4):
                    sides = draw.randint(1, 160), draw.randint(1, 160)
                    cases.append(_case(draw, *sides, _spec(draw, fit, name, 72), orientation, number))
    for _ in range(400):
        width = draw.choice((draw.randint(1, 8), draw.randint(1, 60), draw.randint(1, 300)))
        height = draw.randint(max(1, -(-width // 100)), min(300, width * 100))
        spec = _spec(draw, draw.choice(FITS), draw.choice(FILTERS), draw.choice((4, 40, 120)))
        cases.append(_case(draw, height, width, spec, draw.choice((0, 1, 3, 6, 8, 9)), draw.choice((0, 0, 1, 2, 3))))
    for side in (1, 100):  # the widest and the tallest that the spec takes; enlarged strips
        for fit in FITS:
            for name in FILTERS:
                spec = _spec(draw, fit, name, 64)
                cases.append(_case(draw, 7 * side, 7 * 100 // side, spec, 1, 0))
    for size in ((64, 48), (64, 60), (70, 48)):  # both sizes, then one of them, stay as they are
        spec = PreprocessSpec(height_px=size[1], width_px=size[0], fit="squash")
        cases += [_case(draw, 48, 64, spec, orientation, 0) for orientation in (1, 2, 3, 4)]
    cases += [_case(draw, 50, 40, _spec(draw, "crop", "bicubic", 300), 5 + n % 4, 0) for n in range(8)]
    return cases


def one_pixel_pictures() -> list[Case]:
    """Return pictures of 1 x 1 for each orientation, fit, filter and byte order."""
    draw = random.Random(4)
    return [
        _case(draw, 1, 1, _spec(draw, fit, name, 40), orientation, number)
        for fit in FITS
        for name in FILTERS
        for orientation in range(1, 9)
        for number in range(4)
    ]


def large_pictures() -> list[Case]:
    """Return pictures of 12 megapixels, lying and standing, for both filters and all fits."""
    draw = random.Random(5)
    specs = [
        (PreprocessSpec(height_px=256, width_px=256), 1),
        (PreprocessSpec(height_px=224, width_px=192, filter="bilinear", fit="squash"), 6),
        (PreprocessSpec(height_px=336, width_px=336, fit="pad", pad_colour=(9, 8, 7)), 8),
    ]
    return [_case(draw, 3000, 4000, spec, orientation, 0) for spec, orientation in specs]


@functools.cache
def trained_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    """Return a tokenizer whose merges reach beyond ASCII, and its file."""
    backend = train_bpe([*_TEXTS] * 20, vocab_size=600)
    path = folder / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer.from_file(path, text_length=TEXT_LENGTH), path


def tokenizer_files(folder: Path) -> tuple[Tokenizer, Path]:
    """Return the trained tokenizer, and its `tokenizer.bin` in `folder`."""
    tokenizer, path = trained_tokenizer(folder)
    return tokenizer, flat_file(tokenizer, path)


def flat_file(tokenizer: Tokenizer, path: Path) -> Path:
    """Write the `tokenizer.bin` of the `tokenizer.json` at `path` beside it, and return its path."""
    spec = TokenizerSpec(
        vocab_size=tokenizer.vocab_size,
        text_length=TEXT_LENGTH,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
    flat = path.with_suffix(".bin")
    flat.write_bytes(tokenizer_bin(path, spec))
    return flat


def foreign_tokenizer(kind: str, folder: Path) -> tuple[Tokenizer, Path]:
    """Return a tokenizer as a directly exported bundle has it, and its `tokenizer.json` in `folder`.

    Args:
        kind: `clip` is open_clip's, with CLIP's own 49,408 ids; `canonicalize` the same with another cleaning;
            `transformers` a small one as transformers writes CLIP's; `bert` and `cased` small ones of WordPiece.
        folder: gets the file.
    """
    # Imported here: the pictures' tests need neither.
    from pocketlens.export.sources.vocabulary import Layout, bundle_tokenizer

    if kind in ("clip", "canonicalize"):
        import open_clip

        from pocketlens.export.sources.clip_bpe import clip_bpe

        source, layout = clip_bpe(open_clip.SimpleTokenizer())
        clean = "lower" if kind == "clip" else "canonicalize"
        text, tokenizer = bundle_tokenizer(source, layout, text_length=TEXT_LENGTH, clean=clean)  # type: ignore[arg-type]
    elif kind == "transformers":
        source = _clip_of_transformers()
        end = json.loads(source)["model"]["vocab"]["<|endoftext|>"]
        layout = Layout(pad_id=end, bos_id=end - 1, eos_id=end)
        text, tokenizer = bundle_tokenizer(source, layout, text_length=TEXT_LENGTH)
    else:
        source = _bert(is_cased=kind == "cased")
        text, tokenizer = bundle_tokenizer(source, Layout(pad_id=0, bos_id=2, eos_id=3), text_length=TEXT_LENGTH)
    path = folder / f"{kind}.json"
    path.write_text(text, encoding="utf-8")
    return tokenizer, path


def _clip_of_transformers() -> str:
    """Return CLIP's tokenizer as transformers writes it, with every byte twice and a few hundred merges."""
    from transformers import CLIPTokenizer

    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(_TEXTS, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    names += [name for name in ("".join(merge) for merge in merges) if name not in names]
    vocab = {name: index for index, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    source: str = CLIPTokenizer(vocab=vocab, merges=merges).backend_tokenizer.to_str()
    return source


def _bert(*, is_cased: bool) -> str:
    """Return a WordPiece tokenizer as BERT's: uncased ones lose accents too."""
    backend = Backend(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    backend.train_from_iterator(_TEXTS, trainer)
    source: str = backend.to_str()
    return source


def strings(count: int, extra: Sequence[str] = ()) -> list[str]:
    """Return `count` strings that mix scripts, marks, white space, contractions, special tokens, `extra` and noise."""
    draw = random.Random(6)
    marks = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    composed = [chr(code) for code in range(0x30000) if unicodedata.decomposition(chr(code))[:1] not in ("", "<")]
    words = [
        "cat",
        "Sofa",
        "it's",
        "WE'LL",
        "'ve",
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<pad",
        "12",
        "\u0130",
        "\u03a3",
        *extra,
    ]

    def anything() -> str:
        code = draw.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    sources = [
        lambda: chr(draw.randint(32, 126)),
        lambda: draw.choice(words),
        lambda: draw.choice((" ", "  ", "\t", "\n", draw.choice(spaces))),
        lambda: chr(draw.randint(0x80, 0x24FF)),
        lambda: draw.choice(marks),
        lambda: draw.choice(composed),
        lambda: unicodedata.normalize("NFD", draw.choice(composed)),
        lambda: chr(draw.randint(0xAC00, 0xD7A3)),
        lambda: chr(draw.randint(0x1100, 0x11FF)),
        lambda: chr(draw.choice((0, 9, 0x7F, 0xFEFF, 0xFFFF, 0x10FFFF, 0x1F408, 0x200D))),
        anything,
    ]
    texts = []
    for _ in range(count):
        chosen = draw.sample(sources, draw.randint(1, 4))
        texts.append("".join(draw.choice(chosen)() for _ in range(draw.randint(0, 40))))
    return texts
