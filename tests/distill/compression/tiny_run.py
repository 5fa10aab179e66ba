"""A data set of scenes, answers of a teacher that does not exist, and a student that trains in seconds."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.preprocess import preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.augment import IDENTITY
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.data.recipe import ScenesData
from pocketlens.distill.data.sample import Sample, read_samples
from pocketlens.distill.recipe import Recipe, StudentRecipe, TrainRecipe
from pocketlens.distill.reinforced import Reinforced
from pocketlens.distill.scenes import write_dataset
from pocketlens.distill.shards import pack_texts
from pocketlens.distill.students import config as students
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.student import preprocess_spec

CONFIG = StudentConfig(
    backbone="mobilenetv4_conv_small_035",
    feature_map=-3,
    image_px=32,
    visual_grid=2,
    embed_dim=16,
    width=32,
    heads=2,
    text_layers=1,
    decoder_layers=1,
    text_length=24,
    caption_tokens=20,
    vocab_size=320,
)
DIM = 12
PICTURES = 24


class TinyRun:
    """Everything that a phase is given, in the folder `root`."""

    def __init__(self, root: Path) -> None:
        students.PRESETS["tiny-compression"] = CONFIG
        self.root = root
        sizes = {"train": PICTURES, "val": 1, "test": 1}
        write_dataset(root / "data", split_sizes=sizes, size_px=dict.fromkeys(sizes, 32), seed=3, workers=1)
        self.samples: list[Sample] = list(read_samples(root / "data", "train")[:])
        rng = np.random.default_rng(0)
        texts = sum(len(sample.captions) + 1 for sample in self.samples)
        shard = {
            "images": _unit(rng.normal(size=(PICTURES, 1, DIM))),
            "params": np.broadcast_to(IDENTITY, (PICTURES, 1, len(IDENTITY))),
            "text_ends": np.cumsum([len(sample.captions) + 1 for sample in self.samples]),
            "written": np.ones(PICTURES, np.int32),
            "texts": _unit(rng.normal(size=(texts, DIM))),
            "logprobs": np.zeros(PICTURES, np.float32),
            **pack_texts([sample.captions[0] for sample in self.samples]),
        }
        every = [text for sample in self.samples for text in (*sample.captions, sample.captions[0])]
        path = root / "tokenizer.json"
        path.write_text(train_bpe(every, vocab_size=CONFIG.vocab_size).to_str(), encoding="utf-8")
        self.tokenizer = Tokenizer.from_file(path, text_length=CONFIG.text_length)
        self.config = self.recipe(1).student_config(self.tokenizer.vocab_size)
        self.pixels = np.stack(
            [preprocess(root / "data" / sample.image, preprocess_spec(self.config)) for sample in self.samples]
        )
        self.data = TrainingSet(
            self.samples,
            self.pixels,
            Reinforced([shard]),
            self.tokenizer.encode_batch(every),
            teacher_caption_share=0.2,
            seed=5,
        )

    def recipe(self, steps: int) -> Recipe:
        return Recipe(
            name="tiny",
            seed=5,
            threads=1,
            data=ScenesData(train=PICTURES, val=1, test=1, train_px=32, test_px=32),
            student=StudentRecipe(preset="tiny-compression"),
            train=TrainRecipe(steps=steps, batch=8, ema=0.5, learning_rate=5e-3, checkpoint_every=2),
        )


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float16]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)
