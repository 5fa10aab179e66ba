"""What a video costs: python -m benchmarks.video BUNDLE [--seconds 60] [--size 1280x720] [FILE …].

Without files, renders videos of that size with a cut every four seconds, of one and of four times the length, and
prints time, speed against the clock, segments, and the peak memory of this process, which must not grow with length.
"""

import argparse
import resource
import tempfile
from pathlib import Path
from time import perf_counter

import av
import numpy as np

from pocketlens.runtime import load
from pocketlens.runtime.video import read_pieces, video_segments


def _render(path: Path, seconds: int, width: int, height: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(seconds * 25):
            rng = np.random.default_rng(index // 100)
            colours = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
            picture = np.kron(colours, np.ones((height // 9, width // 16, 1), np.uint8))
            whole = np.zeros((height, width, 3), np.uint8)
            whole[: picture.shape[0], : picture.shape[1]] = picture
            left = (index * 3) % (width - 32)
            whole[height // 2 : height // 2 + 32, left : left + 32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        container.mux(stream.encode())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--size", default="1280x720")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    lens = load(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or [
            _render(Path(folder, f"{factor}.mp4"), options.seconds * factor, width, height) for factor in (1, 4)
        ]
        print("file\tvideo s\tpieces\tread s\tsegments\tall s\ttimes real time\tpeak MB")
        for file in files:
            started = perf_counter()
            pieces = [(piece.start_s, piece.end_s) for piece in read_pieces(file)]
            read_s = perf_counter() - started
            started = perf_counter()
            count = sum(1 for _ in video_segments(lens, file))
            all_s = perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            end_s = pieces[-1][1]
            print(
                f"{file.name}\t{end_s:.1f}\t{len(pieces)}\t{read_s:.2f}\t{count}\t{all_s:.2f}"
                f"\t{end_s / all_s:.1f}\t{peak:.0f}"
            )


if __name__ == "__main__":
    main()
