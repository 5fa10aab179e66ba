"""A data folder of the first pictures of each split, to see the whole command run in minutes."""

from pathlib import Path

__all__ = ["first_pictures"]


def first_pictures(data: Path, folder: Path, count: int) -> Path:
    """Return `folder`, in which each split of `data` has its first `count` pictures; archives and weights are links."""
    flickr = folder / "flickr8k"
    flickr.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev", "test"):
        lines = (data / "flickr8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (flickr / f"{name}.jsonl").write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")
        _link(flickr / f"{name}.tar", data / "flickr8k" / f"{name}.tar")
    _link(folder / "weights", data / "weights")
    return folder


def _link(path: Path, target: Path) -> None:
    if not path.is_symlink():
        path.symlink_to(target.resolve())
