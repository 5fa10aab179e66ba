"""A search as a person says it: words, a picture, more like this one, not like that."""

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import StoreError
from pocketlens.core.preprocess import Picture
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.store.rows import Filter, Hit
from pocketlens.runtime.store.store import Store

__all__ = ["find"]


def find(
    lens: Lens,
    store: Store,
    text: str = "",
    *,
    picture: Picture | None = None,
    unlike: str = "",
    k: int = 10,
    filter: Filter | None = None,
    hybrid: bool = False,
) -> list[Hit]:
    """Return the `k` rows of `store` that fit best, best first.

    With `text` and `picture` the query is the sum of both vectors. `unlike` works twice: half of its vector is
    taken off the query, and rows whose caption has one of its words are left out.

    Args:
        lens: of the store's model version.
        store: where to look.
        text: what to look for.
        picture: what it should look like.
        unlike: what it should not be.
        k: how many answers.
        filter: as in `Store.search`.
        hybrid: also rank captions by the words of `text`.

    Raises:
        PictureError: the picture was refused.
        StoreError: neither text nor picture, another model version, or the store is damaged.
        BundleIncomplete: the bundle has no text encoder.
    """
    if not text.strip() and picture is None:
        raise StoreError("search", expected="some words", found="an empty query", remedy="Say what to look for.")
    if lens.model_version != store.model_version:
        raise StoreError(
            f"store {store.path}",
            expected=f"a store for model version {lens.model_version}",
            found=f"one for {store.model_version}",
            remedy="Open the store with the version of the lens.",
        )
    parts: list[NDArray[np.float32]] = []
    if text.strip():
        parts.append(lens.embed_text(text))
    if picture is not None:
        parts.append(lens.embed_image(picture))
    total = np.sum(parts, axis=0)
    norm = float(np.linalg.norm(total))
    return store.search(
        np.asarray(total / norm if norm > 0 else total, dtype=np.float32),
        k=k,
        filter=filter,
        words=text if hybrid else "",
        unlike=lens.embed_text(unlike) if unlike.strip() else None,
        unlike_words=unlike,
    )
