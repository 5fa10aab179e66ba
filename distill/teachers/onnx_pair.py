"""Any image encoder and text encoder as ONNX files, with a card that says how they are fed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.distill.teachers.folder import teacher_errors
from pocketlens.distill.teachers.preprocessing import Pixels

__all__ = ["OnnxPair", "OnnxPairCard"]


class OnnxPairCard(msgspec.Struct, frozen=True, kw_only=True):
    """`teacher.json` of a folder with `image_encoder.onnx`, `text_encoder.onnx` and `tokenizer.json`.

    Attributes:
        id, licence: who the teacher is, and under which licence it came.
        preprocess: its pictures, as a bundle's spec.
        mean, std: of pixels scaled to [0, 1]; the image encoder takes `(B, 3, H, W)` float32.
        text_length: texts are cut and padded to so many ids; 0 for the longest of a call.
        pad_id: what they are padded with. A text encoder with the input `attention_mask` gets one.
    """

    id: str
    licence: str
    preprocess: PreprocessSpec
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    text_length: Annotated[int, Meta(ge=0)] = 0
    pad_id: int = 0


class OnnxPair:
    """The folder's two graphs in ONNX Runtime. The first output of each is taken, and brought to unit norm.

    Args:
        name: the folder.

    Raises:
        TeacherError: a file is missing or does not fit.
    """

    def __init__(self, name: str) -> None:
        folder = Path(name)
        with teacher_errors(name, "teacher.json, tokenizer.json, image_encoder.onnx and text_encoder.onnx"):
            import onnxruntime as ort
            from tokenizers import Tokenizer

            card = msgspec.json.decode((folder / "teacher.json").read_bytes(), type=OnnxPairCard)
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            files = [folder / "image_encoder.onnx", folder / "text_encoder.onnx"]
            self._image, self._text = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in files)
            self.id, self.licence, self._card = card.id, card.licence, card
            self._pixels = Pixels(card.preprocess, card.mean, card.std)
            self.preprocess = card.preprocess
            length = card.text_length or None
            self._tokenizer.enable_padding(pad_id=card.pad_id, length=length)
            if length:
                self._tokenizer.enable_truncation(length)
            self.dim = int(self.embed_texts(["a picture"]).shape[1])
            digest = hashlib.sha256()
            for path in (*files, folder / "tokenizer.json", folder / "teacher.json"):
                digest.update(path.read_bytes())
            self.digest = digest.hexdigest()

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm for `pixels (B, H, W, 3)` uint8."""
        return _run(self._image, {self._image.get_inputs()[0].name: self._pixels.tensor(pixels).numpy()})

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `(B, D)` float32 of unit norm."""
        encoded = self._tokenizer.encode_batch(list(texts))
        arrays = {"attention_mask": [one.attention_mask for one in encoded]}
        feed = {}
        for given in self._text.get_inputs():
            rows = arrays.get(given.name, [one.ids for one in encoded])
            feed[given.name] = np.array(rows, dtype=np.int32 if "int32" in given.type else np.int64)
        return _run(self._text, feed)


def _run(session: Any, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    features = session.run(None, feed)[0].astype(np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit: NDArray[np.float32] = features / np.maximum(norms, 1e-12)
    return unit
