"""A hash that changes whenever a teacher's answers may."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from pocketlens.core.bundle import tree_digest

__all__ = ["digest_of"]


def digest_of(name: str, model: nn.Module, *words: str) -> str:
    """Return a hash that changes with the teacher's answers: of its folder's files, or of its weights."""
    path = Path(name)
    if path.is_dir():
        content = tree_digest(path)
    else:
        digest = hashlib.sha256()
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        content = digest.hexdigest()
    return hashlib.sha256("\0".join((content, *words)).encode()).hexdigest() if words else content
