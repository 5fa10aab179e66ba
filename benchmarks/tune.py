"""What `pocketlens tune` costs and what it gains: python -m benchmarks.tune BUNDLE [--limit 60] [--runs 60].

Measures the bundle into a cache folder of its own, then times one embedding and one caption in turns, three ways:
as `load` chooses with the measurement, as it chooses without, and ONNX Runtime's fp32 graphs on one thread.
"""

import argparse
import os
import statistics
import tempfile
from time import perf_counter

import numpy as np

from pocketlens.core.bundle import load_bundle
from pocketlens.runtime import Lens, load
from pocketlens.runtime.tuning import tune


def _timed(lenses: dict[str, Lens], picture: np.ndarray, runs: int) -> dict[str, dict[str, float]]:
    times: dict[str, dict[str, list[float]]] = {name: {"embed": [], "text": [], "caption": []} for name in lenses}
    for turn in range(runs + 5):
        for name in list(lenses) if turn % 2 else list(reversed(lenses)):
            lens = lenses[name]
            calls = {
                "embed": lambda lens=lens: lens.embed_image(picture),
                "text": lambda lens=lens: lens.embed_text("two red balls"),
                "caption": lambda lens=lens: lens.caption(picture),
            }
            for what, call in calls.items():
                call()
                started = perf_counter()
                call()
                if turn >= 5:
                    times[name][what].append((perf_counter() - started) * 1000)
    return {name: {what: statistics.median(ms) for what, ms in of.items()} for name, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        bundle = load_bundle(options.bundle)
        profile = tune(bundle, limit_s=options.limit)
        tried = [m.status for m in profile.measurements]
        print(f"tune: {profile.seconds:.1f} s for {len(tried)} candidates, {tried.count('measured')} measured")
        lenses = {
            "tuned": load(options.bundle),
            "exported": load(options.bundle, tuned=False),
            "fp32, 1 thread": load(options.bundle, engine="onnxruntime", precision="fp32", threads=1, tuned=False),
        }
        plan = lenses["tuned"].plan
        for role, chain in plan.chains.items() if plan else ():
            first = chain[0]
            print(f"  {role}: {first.spec} {first.record.precision}, {first.threads} threads")
        picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        medians = _timed(lenses, picture, options.runs)
    print("choice\tembed ms\ttext ms\tcaption ms")
    for name, row in medians.items():
        print(f"{name}\t{row['embed']:.3f}\t{row['text']:.3f}\t{row['caption']:.3f}")
    tuned, exported = medians["tuned"], medians["exported"]
    print("gain\t" + "\t".join(f"{exported[what] / tuned[what]:.2f}x" for what in ("embed", "text", "caption")))


if __name__ == "__main__":
    main()
