"""Shards with several captions, alternatives, int8 vectors and pictures that nobody described."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pocketlens.core.errors import DataError, TrainingError
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.distributed import Place, place
from pocketlens.distill.pictures import DecodedPixels, load_pixels
from pocketlens.distill.recipe import ReinforceRecipe
from pocketlens.distill.reinforce import reinforce
from pocketlens.distill.reinforced import Reinforced, read_reinforced
from pocketlens.distill.shards import bytes_by_name, open_shard, pack_vectors, unpack_vectors, write_shard
from pocketlens.distill.teachers.generated import score
from pocketlens.distill.teachers.hf_captioner import HfCaptioner
from pocketlens.distill.teachers.open_clip_teacher import OpenClipTeacher
from pocketlens.distill.token_cache import all_texts, token_ids
from tests.distill.tiny import TEXTS, noise, write_captioner, write_embedder

CAPTIONS = (("a red ball", "one ball"), (), ("two cars",), ("a tree", "a small tree", "it snows"), ("a duck",))


class World:
    """Five pictures with 2, 0, 1, 3 and 1 captions, and two random teachers."""

    def __init__(self, root: Path) -> None:
        from PIL import Image

        self.data = root / "data"
        self.data.mkdir()
        self.pixels = noise(5, 32)
        for row, picture in enumerate(self.pixels):
            Image.fromarray(picture).save(self.data / f"{row}.png")
        self.samples = [
            Sample(id=f"train/{row}", image=f"{row}.png", captions=captions) for row, captions in enumerate(CAPTIONS)
        ]
        self.folders = [write_embedder(root / "embedder"), write_captioner(root / "captioner")]
        self.embedder = OpenClipTeacher(self.folders[0])
        self.captioner = HfCaptioner(str(self.folders[1]), max_tokens=8)

    def shards(self, folder: Path, settings: ReinforceRecipe, at: Place | None = None) -> list[Path]:
        return reinforce(
            self.samples,
            data=self.data,
            embedder=self.embedder,
            captioner=self.captioner,
            embedder_pixels=self.pixels,
            captioner_pixels=self.pixels,
            folder=folder,
            settings=settings,
            seed=7,
            place=at or Place(),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rich(world: World, tmp_path_factory: pytest.TempPathFactory) -> Reinforced:
    settings = ReinforceRecipe(views=2, captions=3, top_k=4, shard=2, augment="photo")
    return read_reinforced(world.shards(tmp_path_factory.mktemp("rich"), settings))


def test_every_text_has_its_row_across_shards(world: World, rich: Reinforced) -> None:
    assert len(rich) == 5
    assert np.diff(rich.text_starts).tolist() == [len(captions) + 3 for captions in CAPTIONS]
    texts = list(all_texts(world.samples, rich))
    assert len(texts) == rich.text_starts[-1] == 22
    rows = np.array([21, 0, 5, 11])
    assert np.allclose(rich.texts(rows), world.embedder.embed_texts([texts[row] for row in rows]), atol=2e-3)


def test_written_captions_are_sorted_and_scored_by_the_captioner(world: World, rich: Reinforced) -> None:
    for row in range(5):
        scores = rich.logprobs(row)
        assert (np.diff(scores) <= 1e-5).all()
        assert (scores < 0).all()
    ids, (top, logprobs) = rich.alternatives(np.array([3, 1]), np.array([0, 2]))
    assert ids.shape == top.shape[:2] == logprobs.shape[:2]
    assert top.shape[2] == 4
    real = ids >= 0
    assert (np.diff(logprobs[real], axis=1) <= 0).all()
    assert (np.exp(logprobs[real]).sum(axis=1) <= 1.001).all()
    # the sum of what each own id costs is the caption's log-probability, where the id is among the likeliest
    inside = (top == ids[..., None]) & real[..., None]
    if inside.any(axis=2)[0][real[0]].all():
        own = (logprobs[0] * inside[0]).sum()
        assert own == pytest.approx(float(rich.logprobs(3)[0]), abs=0.05)


def test_alternatives_come_from_the_captioner_itself(world: World, rich: Reinforced) -> None:
    ids, (top, _) = rich.alternatives(np.array([2]), np.array([0]))
    model = world.captioner.model
    images = world.captioner._pixels.tensor(world.pixels[2:3])
    start = torch.tensor([[model.generation_config.decoder_start_token_id]])
    with torch.inference_mode():
        inputs = torch.cat([start, torch.from_numpy(ids[:, :-1]).long()], dim=1)
        logits = model(pixel_values=images, decoder_input_ids=inputs).logits
    assert top[0].tolist() == logits.topk(4, dim=-1).indices[0].tolist()


def test_a_single_caption_is_the_greedy_one_with_and_without_alternatives(world: World) -> None:
    plain = world.captioner.caption(world.pixels)
    scored = world.captioner.captions(world.pixels, count=1, top_k=2)
    assert [one.text for one in plain] == [of_picture[0].text for of_picture in scored]
    assert [one.logprob for one in plain] == pytest.approx([o[0].logprob for o in scored], abs=1e-4)
    assert all(len(o[0].token_ids) == len(o[0].top_ids) for o in scored)


def test_a_score_ends_with_the_first_end_token() -> None:
    logits = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 4, 2, 2, 0]])
    (one,) = score(logits, ids, ends=[2], top_k=1)
    own = torch.log_softmax(logits, dim=-1)[0, torch.arange(3), ids[0, :3]].sum()
    assert one.logprob == pytest.approx(float(own), abs=1e-5)
    assert one.token_ids.tolist() == [3, 4, 2]


def test_int8_vectors_lose_little_and_take_half_the_space(world: World, tmp_path: Path) -> None:
    halves = world.shards(tmp_path / "f16", ReinforceRecipe(shard=5))
    bytes_ = world.shards(tmp_path / "i8", ReinforceRecipe(shard=5, store="int8"))
    rows, views = np.arange(5), np.array([0, 1, 0, 1, 0])
    a, b = (read_reinforced(paths).images(rows, views) for paths in (halves, bytes_))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.9999
    assert bytes_by_name(bytes_)["images"] * 2 == bytes_by_name(halves)["images"]


def test_a_vector_of_zeros_stays_one_in_int8() -> None:
    packed = pack_vectors("v", np.zeros((2, 4), np.float32), int8=True)
    assert unpack_vectors(packed, "v", (np.array([1]),)).tolist() == [[0.0] * 4]


def test_the_ranks_share_the_shards_and_name_the_same_ones(world: World, tmp_path: Path) -> None:
    settings = ReinforceRecipe(shard=1)
    first = world.shards(tmp_path, settings, Place(0, 2))
    assert [path.exists() for path in first] == [True, False, True, False, True]
    assert world.shards(tmp_path, settings, Place(1, 2)) == first
    assert len(read_reinforced(first)) == 5


@pytest.mark.parametrize("change", ["captions", "seed", "picture", "caption"])
def test_a_shard_is_never_taken_for_another(world: World, tmp_path: Path, change: str) -> None:
    settings = ReinforceRecipe(shard=5)
    before = world.shards(tmp_path, settings)
    keep = world.samples[0]
    if change == "captions":
        settings = msgspec.structs.replace(settings, captions=2)
    elif change == "caption":
        world.samples[0] = msgspec.structs.replace(keep, captions=("another",))
    elif change == "picture":
        world.samples[0] = msgspec.structs.replace(keep, image="1.png")
    else:
        settings = msgspec.structs.replace(settings, augment="photo")
    try:
        assert world.shards(tmp_path, settings) != before
    finally:
        world.samples[0] = keep


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() == Place(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place() == Place(1, 4)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(TrainingError, match="torchrun"):
        place()


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"\x05\0\0\0\0\0\0\0[1,2]"])
def test_a_file_that_is_no_shard_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "shard-00000-aa.safetensors"
    path.write_bytes(damage)
    with pytest.raises(DataError, match=r"shard"):
        read_reinforced([path])
    with pytest.raises(DataError, match="0 shards"):
        read_reinforced([])


def test_a_shard_of_an_earlier_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000-aa.safetensors"
    write_shard(path, {"images": np.zeros((2, 1, 4), np.float16), "texts": np.zeros((2, 4), np.float16)})
    with pytest.raises(DataError, match=r"written.*without some of these arrays"):
        read_reinforced([path])


def test_a_shard_cut_short_is_named(world: World, tmp_path: Path) -> None:
    (path,) = world.shards(tmp_path, ReinforceRecipe(shard=5))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="does not lie in the file"):
        open_shard(path)


# Drawing from it


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(TEXTS, vocab_size=280), text_length=12)


def test_pictures_without_captions_are_given_the_teachers(world: World, rich: Reinforced, tokenizer: Tokenizer) -> None:
    ids = token_ids(world.samples, rich, tokenizer)
    data = TrainingSet(world.samples, world.pixels, rich, ids, teacher_caption_share=0.0, seed=1)
    texts = list(all_texts(world.samples, rich))
    allowed = [
        set(range(int(s), int(e) - (3 if CAPTIONS[row] else 0)))
        for row, (s, e) in enumerate(zip(rich.text_starts[:-1], rich.text_starts[1:], strict=True))
    ]
    vectors = rich.texts(np.arange(len(texts)))
    seen = [set[int]() for _ in CAPTIONS]
    for step in range(40):
        batch = data.batch(step, 5)
        for row in range(5):
            match = int(np.argmin(np.abs(vectors - batch.teacher_texts[row].numpy()).sum(axis=1)))
            same = [i for i, vector in enumerate(vectors) if np.allclose(vector, vectors[match], atol=1e-6)]
            assert set(same) & allowed[row]
            seen[row].update(set(same) & allowed[row])
    assert len(seen[3]) == 3  # every human caption comes up
    assert len(seen[1]) >= 2  # and more than one of the teacher's


def test_ids_are_the_same_from_memory_and_from_the_cache(
    world: World, rich: Reinforced, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    plain = token_ids(world.samples, rich, tokenizer)
    cached = token_ids(world.samples, rich, tokenizer, cache=tmp_path)
    assert np.array_equal(plain, cached)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    assert np.array_equal(token_ids(world.samples, rich, tokenizer, cache=tmp_path), cached)
    assert file.stat().st_mtime_ns == stamp


def test_pixels_decoded_when_asked_for_equal_the_cached_ones(world: World, tmp_path: Path) -> None:
    spec = PreprocessSpec(height_px=24, width_px=24)
    pictures = [sample.picture(world.data) for sample in world.samples]
    cached = load_pixels(pictures, spec, cache=tmp_path, workers=1)
    fresh = DecodedPixels(pictures, spec)
    rows = np.array([4, 0, 2])
    assert np.array_equal(fresh[rows], cached[rows])
    assert np.array_equal(fresh[1:3], cached[1:3])
    (world.data / "gone.png").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"gone\.png"):
        load_pixels([world.data / "gone.png"], spec, cache=tmp_path)


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Drawing from a set of 400,000 pictures and 512 MB of answers takes a few MB."""
    script = """
import resource, sys
import numpy as np
from pathlib import Path
from pocketlens.distill.reinforced import read_reinforced
from pocketlens.distill.shards import pack_texts, write_shard
folder, count, dim = Path(sys.argv[1]), 100_000, 320
paths = []
for number in range(4):
    path = folder / f"shard-{number:05d}-x.safetensors"
    vectors = np.lib.stride_tricks.as_strided(np.ones(1, np.float16), (count, 1, dim), (0, 0, 0))
    write_shard(path, {
        "images": vectors, "texts": np.ascontiguousarray(vectors[:, 0]), "params": np.zeros((count, 1, 7), np.float32),
        "text_ends": np.arange(1, count + 1), "written": np.ones(count, np.int32),
        "logprobs": np.zeros(count, np.float32), **pack_texts(["a caption"] * count),
    })
    paths.append(path)
if len(sys.argv) > 2:
    raise SystemExit
"""
    read = """
import resource, sys
import numpy as np
from pathlib import Path
from pocketlens.distill.reinforced import read_reinforced
paths = sorted(Path(sys.argv[1]).iterdir())
anonymous = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
before = anonymous()
data, rng = read_reinforced(paths), np.random.default_rng(0)
for _ in range(300):
    rows = rng.integers(len(data), size=64)
    data.images(rows, np.zeros(64, int)), data.texts(data.text_starts[rows]), data.captions(int(rows[0]))
print(anonymous() - before)
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    done = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path)], check=True, env=environment, capture_output=True, text=True
    )
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 500e6
    assert int(done.stdout) < 40_000  # kB; 12 bytes a picture are 5 MB, the rest is Python's
