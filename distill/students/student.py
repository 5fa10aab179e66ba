"""A student: image tower, text tower and captioner under one roof, and how it is saved.

A student folder holds `student.json` (its `StudentConfig`), `student.safetensors` (weights) and
`tokenizer.json`. The weights' file of a student that was trained for int8 holds the ranges of its activations too.
"""

import math
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.students.caption_decoder import CaptionDecoder, CaptionDecodeStep, CaptionPrefill
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.image_encoder import ImageEncoder
from pocketlens.distill.students.text_encoder import TextEncoder
from pocketlens.distill.students.widths import resize

__all__ = ["Student", "load_student", "preprocess_spec", "save_student"]

_RANGES = "ranges"


class Student(nn.Module):
    """The compact model that everything else is about.

    The four modules that are exported are `image_encoder`, `text_encoder` and what
    `caption_prefill()` and `caption_decode()` return; all share this student's weights.

    Attributes:
        config: its sizes. Layers that were pruned are as narrow as it says, with weights of no use before they are
            loaded.
        ranges: by role, by node of the captured graph: lowest and highest value `(2,)` float32 of an activation,
            as quantization-aware training left them; empty without. Any other training makes them stale.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.caption_decoder = CaptionDecoder(config, visual_tokens=self.image_encoder.visual_tokens)
        # CLIP's temperature starts at 0.07 (Radford et al. 2021, section 2.5).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.ranges: dict[str, dict[str, Tensor]] = {}
        if config.pruned:
            resize(self, config.pruned)
            self._probe()

    @torch.no_grad()
    def _probe(self) -> None:
        """Look whether narrowed layers fit each other."""
        config = self.config
        self.eval()  # the probe must not move the batch norms' averages
        try:
            ids = torch.ones(1, min(config.text_length, config.caption_tokens), dtype=torch.int32)
            _, visual = self.image_encoder(torch.zeros(1, config.image_px, config.image_px, 3, dtype=torch.uint8))
            self.text_encoder(ids)
            self.caption_decoder(visual, ids)
        except RuntimeError as error:
            raise DataError(
                "pruned layers of a student",
                expected="layers as wide as what they are given",
                found=str(error)[:300],
                remedy="Take `pruned` in student.json as the pruning wrote it, or train again.",
            ) from error
        self.train()

    def caption_prefill(self) -> CaptionPrefill:
        """Return the module that turns visual tokens into a cache."""
        return CaptionPrefill(self.caption_decoder)

    def caption_decode(self) -> CaptionDecodeStep:
        """Return the module that decodes one token."""
        return CaptionDecodeStep(self.caption_decoder)

    @torch.no_grad()
    def greedy(self, visual_tokens: Tensor, *, bos_id: int, eos_id: int) -> list[list[int]]:
        """Return greedy captions as ids, the end token included where reached.

        This is the eager reference that exported graphs are compared with: it runs the same
        prefill and decode modules, in torch. `visual_tokens` is `(B, V, E)`.
        """
        step, batch = self.caption_decode(), visual_tokens.shape[0]
        cache = self.caption_prefill()(visual_tokens)
        token = torch.full((batch,), bos_id, dtype=torch.int32)
        captions: list[list[int]] = [[] for _ in range(batch)]
        done = torch.zeros(batch, dtype=torch.bool)
        for offset in range(self.config.caption_tokens):
            position = torch.full((batch,), self.caption_decoder.visual_tokens + offset, dtype=torch.int32)
            logits, cache = step(token, position, cache)
            token = logits.argmax(dim=-1).to(torch.int32)
            for row in torch.nonzero(~done).flatten().tolist():
                captions[row].append(int(token[row]))
            done |= token == eos_id
            if bool(done.all()):
                break
        return captions

    def parameter_count(self) -> int:
        """Return the number of weights, the temperature included."""
        return sum(parameter.numel() for parameter in self.parameters())


def preprocess_spec(config: StudentConfig) -> PreprocessSpec:
    """Return the preprocessing that this student is trained with and that its bundle carries."""
    return PreprocessSpec(height_px=config.image_px, width_px=config.image_px)


def save_student(folder: Path, student: Student) -> None:
    """Write `student.json` and `student.safetensors` into `folder`.

    Raises:
        StorageFull: no space left.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "student.json").write_bytes(msgspec.json.format(msgspec.json.encode(student.config), indent=2))
        values = {k: v.contiguous() for k, v in student.state_dict().items()}
        for role, ranges in student.ranges.items():
            values |= {f"{_RANGES}/{role}/{node}": value for node, value in ranges.items()}
        save_file(values, folder / "student.safetensors")


def load_student(folder: Path) -> tuple[Student, Tokenizer]:
    """Return the student saved in `folder`, in eval mode, and its tokenizer.

    Raises:
        DataError: a file is missing or does not fit, as where the widths of a pruned student are not its weights'.
    """
    try:
        config = msgspec.json.decode((folder / "student.json").read_bytes(), type=StudentConfig)
        student = Student(config)
        values = load_file(folder / "student.safetensors")
        for name in [name for name in values if name.startswith(f"{_RANGES}/")]:
            _, role, node = name.split("/", 2)
            student.ranges.setdefault(role, {})[node] = values.pop(name)
        student.load_state_dict(values)
    except (OSError, msgspec.MsgspecError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"student folder {folder}",
            expected="student.json and student.safetensors as `pocketlens distill train` writes them",
            found=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Point at a finished training run, or train again.",
        ) from error
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", text_length=config.text_length)
    return student.eval(), tokenizer
