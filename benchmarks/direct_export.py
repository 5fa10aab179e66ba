"""Export models of other libraries at true size, with random weights: seconds, MB and parity.

::

    python -m benchmarks.direct_export MODEL --work DIR [--variants onnx-fp32] [--pictures 8] [--out figures.json]

MODEL is one of the names below. Weights are random (no hub is asked), so the figures say what the export costs and
whether it keeps the answers, not how good the model is. Pictures are rendered scenes. A graph that fails is a
figure like any other; seconds are CPU time of this process, and so is the peak of its memory.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from PIL import Image

from pocketlens.core.bundle import load_bundle
from pocketlens.core.errors import PocketlensError
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.scenes.caption import captions
from pocketlens.distill.scenes.grammar import sample_scene
from pocketlens.distill.scenes.render import render
from pocketlens.export import ExportRecipe, Gates, Samples, export_student, verify_bundle
from pocketlens.export.outcomes import GraphOutcome
from pocketlens.export.recipe import Variant

__all__ = ["main"]

_GAIN: Final = 2.0
_COREML_SAMPLES: Final = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Export one model and print its figures as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--work", type=Path, required=True, help="pictures, random models and bundles go here")
    parser.add_argument("--variants", default="onnx-fp32")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5, help="timed calls of each graph")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    samples = _samples(options.work / "pictures", options.pictures)
    source = MODELS[options.model](options.work / "models" / options.model)
    recipe = ExportRecipe(
        variants=tuple(cast("Variant", name) for name in options.variants.split(",")),
        calibration_samples=options.pictures,
        latency_runs=options.runs,
        golden_samples=2,
        coreml_samples=_COREML_SAMPLES,
        mixed_precision="off",
        gates=Gates(
            fp32_min_cosine=0.0,
            fp32_min_token_agreement=0.0,
            fp16_min_mean_cosine=0.0,
            int8_min_mean_cosine=0.0,
            min_speedup=1e-6,
        ),
    )
    outcomes: dict[tuple[str, str], GraphOutcome] = {}

    def watch(outcome: GraphOutcome) -> None:
        outcomes[outcome.variant, outcome.role] = outcome
        print(f"{outcome.variant} {outcome.role}: {outcome.status} {outcome.reason}", file=sys.stderr, flush=True)

    out = options.work / "bundles" / f"{options.model}-{options.variants.replace(',', '-')}"
    wall_started, started = time.perf_counter(), time.process_time()
    failure = ""
    try:
        export_student(
            source,
            out,
            recipe=recipe,
            test=samples,
            calibration=samples,
            name=options.model,
            licence="unknown",
            keep_going=True,
            watch=watch,
        )
    except PocketlensError as error:
        failure = str(error)
    figures: dict[str, object] = {
        "model": options.model,
        "cpu_seconds": round(time.process_time() - started, 1),
        "wall_seconds": round(time.perf_counter() - wall_started, 1),
        "peak_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "threads": options.threads,
        "failure": failure,
        "graphs": [_figures(outcome) for outcome in outcomes.values() if outcome.shipped],
    }
    if out.exists():
        report = verify_bundle(out)
        figures |= {"verified": report.passed, "provenance": load_bundle(out).manifest.provenance}
    text = json.dumps(figures, indent=1)
    print(text)  # results go to stdout
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return 0


def _figures(outcome: GraphOutcome) -> dict[str, object]:
    parity = outcome.parity
    return {
        "variant": outcome.variant,
        "role": outcome.role,
        "status": outcome.status,
        "reason": outcome.reason,
        "MB": None if outcome.bytes is None else outcome.bytes / 1e6,
        "delegated": None if outcome.delegation is None else outcome.delegation.sentence(),
        "parity": None if parity is None else [parity.metric, parity.minimum, parity.mean, parity.samples],
        "p50_ms": None if outcome.latency is None else outcome.latency.p50_ms,
    }


def _samples(folder: Path, count: int) -> Samples:
    folder.mkdir(exist_ok=True)
    scenes = [sample_scene(seed, split="test") for seed in range(count)]
    paths = [folder / f"{index}.png" for index in range(count)]
    for path, scene in zip(paths, scenes, strict=True):
        if not path.exists():
            Image.fromarray(render(scene, size_px=256)).save(path)
    return Samples(paths, [captions(scene)[0] for scene in scenes])


def _open_clip(name: str) -> Callable[[Path], str]:
    return lambda folder: f"open_clip:{name}@random"


def _siglip(folder: Path) -> str:
    """SigLIP base, patch 16, 224 pixels: the defaults of `SiglipConfig`, with a small unigram tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    texts = [captions(sample_scene(seed, split="train"))[0] for seed in range(200)]
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    config = SiglipConfig()
    config.text_config.bos_token_id, config.text_config.eos_token_id, config.text_config.pad_token_id = 0, 1, 1
    return _saved(folder, _spread(SiglipModel(config)), tokenizer, SiglipImageProcessor())


def _blip(folder: Path) -> str:
    """BLIP base, 384 pixels: the defaults of `BlipConfig`, with a small WordPiece tokenizer filled up to BERT's ids."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
    )

    text: dict[str, Any] = {"vocab_size": 30524, "encoder_hidden_size": 768, "sep_token_id": 102}
    text |= {"bos_token_id": 30522, "eos_token_id": 2, "pad_token_id": 0, "num_attention_heads": 12}
    # BLIP's own initializer_range of the picture part is 1e-10: with it all pictures are equal.
    config = BlipConfig(text_config=text, vision_config={"initializer_range": 0.02})
    torch.manual_seed(0)
    model = _spread(BlipForConditionalGeneration(config))
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    names += [f"##{letter}" for letter in letters]
    names += [f"word{n}" for n in range(30522 - len(names))]
    tokenizer = BertTokenizer(vocab={name: index for index, name in enumerate(names)})
    return _saved(folder, model, tokenizer, BlipImageProcessor())


def _spread(model: Any) -> Any:
    """Scale linear layers up: with their initial weights all pictures and texts come out nearly the same."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= _GAIN
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data *= 4 * _GAIN
    return model.eval()


def _saved(folder: Path, *parts: Any) -> str:
    with quiet_loading():
        for part in parts:
            part.save_pretrained(folder)
    return f"hf:{folder}"


MODELS: Final[dict[str, Callable[[Path], str]]] = {
    "MobileCLIP2-S0": _open_clip("MobileCLIP2-S0"),
    "ViT-B-32": _open_clip("ViT-B-32"),
    "siglip-base": _siglip,
    "blip-base": _blip,
}

if __name__ == "__main__":
    sys.exit(main())
