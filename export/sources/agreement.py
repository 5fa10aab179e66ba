"""Does the bundle's tokenizer give the ids of the model's own?"""

from collections.abc import Sequence
from typing import Final

import torch

from pocketlens.core.errors import ExportError
from pocketlens.export.sources.exportable import OpenedSource
from pocketlens.export.sources.towers import TextGraph

__all__ = ["check_ids", "id_agreement"]

_LEAST: Final = 0.99


def id_agreement(source: OpenedSource, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether both tokenizers give the same ids, padding and cutting included.

    All are `True` for a source whose tokenizer is the bundle's.
    """
    text = source.model.modules.get("text_encoder")
    if source.own_ids is None or not isinstance(text, TextGraph):
        return [True] * len(texts)
    found = text.own_ids(torch.from_numpy(source.tokenizer.encode_batch(texts)))
    agreed: list[bool] = (found == source.own_ids(texts)).all(dim=1).tolist()
    return agreed


def check_ids(source: OpenedSource, texts: Sequence[str]) -> str:
    """Return a sentence on `id_agreement` for the manifest's provenance.

    Raises:
        ExportError: fewer than 99 % of the texts get the ids of the model's own tokenizer.
    """
    agreed = id_agreement(source, texts)
    if sum(agreed) < _LEAST * len(texts):
        first = texts[agreed.index(False)]
        raise ExportError(
            f"tokenizer of {source.id}",
            expected=f"the ids of the model's own tokenizer for at least {_LEAST:.0%} of {len(texts)} texts",
            found=f"{sum(agreed)} that agree; the first that does not is {first[:100]!r}",
            remedy="HTML entities, broken encodings and full-width letters are repaired by the model's library and "
            "not on a device (docs/direct-export.md): clean the texts, or report the difference.",
        )
    return f"{sum(agreed)} of {len(texts)} texts have the ids of the model's own tokenizer"
