"""A foreign tokenizer as the bundle's `tokenizer.json`.

The bundle calls its special tokens `<pad>`, `<bos>` and `<eos>` (`pocketlens.core.tokenizer`). A foreign model has
other names for them, pads with an ordinary token (CLIP in open_clip: id 0, which is "!") or has no first token
at all (SigLIP). So:

- the tokens that begin and end a text are renamed in place; their ids stay;
- the padding token is renamed where it is a special token of its own; else `<pad>` is a new id behind the table,
  which the text graph replaces by the model's own (`TextGraph`);
- a `<bos>` that the model does not have is a new id as well, which the text graph cuts off.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer as Backend

from pocketlens.core.errors import ExportError
from pocketlens.core.tokenizer import BOS, EOS, PAD, Tokenizer
from pocketlens.export.sources.cleaning import Clean, cleaning_steps

__all__ = ["Layout", "bundle_tokenizer"]

_Json = dict[str, Any]
_PLAIN: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@dataclass(frozen=True)
class Layout:
    """The ids that carry a role in the model's own texts: `[bos] … eos pad …`.

    Attributes:
        pad_id: what follows the end.
        bos_id: what every text begins with, or `None`.
        eos_id: what every text ends with.
    """

    pad_id: int
    bos_id: int | None
    eos_id: int


def bundle_tokenizer(source: str, layout: Layout, *, text_length: int, clean: Clean = "none") -> tuple[str, Tokenizer]:
    """Return `tokenizer.json` of the bundle and the tokenizer that it makes.

    Args:
        source: the model's own, in Hugging Face tokenizers format.
        layout: see `Layout`.
        text_length: T of the bundle.
        clean: what the model's library does to a text before.

    Raises:
        ExportError: the vocabulary cannot be given the bundle's special tokens.
    """
    file: _Json = json.loads(source)
    names = _vocabulary(file)
    _rename(file, names, layout.eos_id, EOS)
    if layout.bos_id is None:
        _ensure(file, names, BOS)
    else:
        _rename(file, names, layout.bos_id, BOS)
    special = {entry["id"] for entry in file["added_tokens"] if entry["special"]}
    if layout.pad_id in special - {layout.eos_id, layout.bos_id}:
        _rename(file, names, layout.pad_id, PAD)
    else:
        _ensure(file, names, PAD)
    # The bundle's reader adds the special tokens itself, cuts and pads.
    file["post_processor"] = file["truncation"] = file["padding"] = None
    _clean_first(file, cleaning_steps(clean))
    text = json.dumps(file, ensure_ascii=False)
    tokenizer = Tokenizer(Backend.from_str(text), text_length=text_length)
    expected = (layout.eos_id, tokenizer.bos_id if layout.bos_id is None else layout.bos_id)
    if (tokenizer.eos_id, tokenizer.bos_id) != expected:
        raise _unfit(f"{EOS} and {BOS} with the ids {expected}", f"{(tokenizer.eos_id, tokenizer.bos_id)}")
    return text, tokenizer


def _vocabulary(file: _Json) -> dict[int, str]:
    """Return every token by its id."""
    vocab = file["model"]["vocab"]
    names = (
        dict(enumerate(piece for piece, _ in vocab)) if isinstance(vocab, list) else {i: t for t, i in vocab.items()}
    )
    return names | {entry["id"]: entry["content"] for entry in file["added_tokens"]}


def _rename(file: _Json, names: dict[int, str], index: int, name: str) -> None:
    """Call the token `index` `name`, wherever the file mentions it, and make it a special one."""
    taken = next((i for i, other in names.items() if other == name), index)
    if taken != index:
        raise _unfit(f"the name {name} for the id {index}", f"that name at the id {taken}")
    if index not in names:
        if index != len(names):
            raise _unfit(f"the id {index} in the vocabulary", f"{len(names)} tokens")
        names[index] = name
    old = names[index]
    model = file["model"]
    if isinstance(model["vocab"], list):
        if index < len(model["vocab"]):
            model["vocab"][index][0] = name
    elif old in model["vocab"]:
        del model["vocab"][old]
        model["vocab"][name] = index
    if model.get("unk_token") == old:
        model["unk_token"] = name
    names[index] = name
    file["added_tokens"] = [entry for entry in file["added_tokens"] if entry["id"] != index]
    file["added_tokens"].append({"id": index, "content": name, **_PLAIN})
    file["added_tokens"].sort(key=lambda entry: int(entry["id"]))


def _ensure(file: _Json, names: dict[int, str], name: str) -> None:
    """Make `name` a special token: the one that has the name already, or a new one behind all others."""
    _rename(file, names, next((i for i, other in names.items() if other == name), max(names) + 1), name)


def _clean_first(file: _Json, steps: Sequence[_Json]) -> None:
    own = file["normalizer"]
    rest = [] if own is None else own["normalizers"] if own["type"] == "Sequence" else [own]
    if steps:
        file["normalizer"] = {"type": "Sequence", "normalizers": [*steps, *rest]}


def _unfit(expected: str, found: str) -> ExportError:
    return ExportError(
        "the model's tokenizer",
        expected=expected,
        found=found,
        remedy="Check that tokenizer and weights belong together; the vocabulary cannot be carried over as it is.",
    )
