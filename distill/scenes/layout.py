"""Places the objects of a scene on the ground so that count and relation can be seen."""

from collections.abc import Callable
from typing import Final

from pocketlens.distill.scenes.grammar import SLOTS, Group, SceneObject

__all__ = ["EXTENTS", "SCALES", "place", "visible_share"]

SCALES: Final = {"small": 0.178, "medium": 0.25, "large": 0.35}
"""What one model unit measures at the front, as a fraction of the picture's side."""

EXTENTS: Final = {
    "ball": (0.47, 0.90),
    "cube": (0.54, 0.86),
    "cone": (0.55, 1.01),
    "star": (0.53, 1.00),
    "heart": (0.51, 0.95),
    "tree": (0.49, 1.12),
    "house": (0.64, 1.02),
    "car": (0.70, 0.67),
    "boat": (0.54, 1.08),
    "fish": (0.58, 0.80),
    "mushroom": (0.51, 0.92),
    "balloon": (0.37, 1.37),
    "cup": (0.59, 0.89),
    "duck": (0.57, 0.90),
}
"""Half the width and the height of each model, in model units, seen by the camera."""

_TRIES: Final = 60
_MIN_SHARE: Final = 0.62
_POSES: Final = 2

_Spot = tuple[float, float, float]  # x, y, scale


def place(groups: tuple[Group, ...], relation: str | None, rand: Callable[[], float]) -> tuple[SceneObject, ...]:
    """Return the objects of `groups`, farthest first.

    Args:
        groups: one or two groups that fit the picture (see `grammar`).
        relation: where the first group is relative to the second; `None` for one group.
        rand: the source of randomness, uniform in [0, 1).
    """
    best: list[list[_Spot]] = []
    best_share = -1.0
    for _ in range(_TRIES):
        spots = _propose(groups, relation, rand)
        share = _worst_share(groups, spots)
        if share > best_share:
            best, best_share = spots, share
        if share >= _MIN_SHARE:
            break
    objects = []
    for index, (group, row) in enumerate(zip(groups, best, strict=True)):
        pose = int(rand() * _POSES)
        mirrored = rand() < 0.5
        objects += [
            SceneObject(
                kind=group.kind,
                colour=group.colour,
                size=group.size,
                group=index,
                x=round(x, 4),
                y=round(y, 4),
                scale=round(scale, 4),
                pose=pose,
                mirrored=mirrored,
            )
            for x, y, scale in row
        ]
    return tuple(sorted(objects, key=lambda o: o.y))


def visible_share(objects: tuple[SceneObject, ...], index: int) -> float:
    """Return the share of the object's frame, in [0, 1], that no nearer object's frame covers."""
    frames = [_frame(o.kind, (o.x, o.y, o.scale)) for o in objects]
    return _uncovered(frames[index], [f for f in frames if f[3] > frames[index][3]])


def _propose(groups: tuple[Group, ...], relation: str | None, rand: Callable[[], float]) -> list[list[_Spot]]:
    if relation in ("behind", "in front of"):
        centre = 0.5 + 0.16 * (rand() - 0.5)
        offset = (0.06 + 0.24 * rand()) * (1 if rand() < 0.5 else -1)
        near, far = (0.90 + 0.05 * rand(), centre - offset / 2), (0.62 + 0.04 * rand(), centre + offset / 2)
        where = (far, near) if relation == "behind" else (near, far)
        return [_row(group, x, y, rand) for group, (y, x) in zip(groups, where, strict=True)]
    y = 0.74 + 0.12 * rand()
    widths = [group.count * SLOTS[group.size] / 12 * 0.97 for group in groups]
    order = [1, 0] if relation == "right of" else list(range(len(groups)))
    free = 1.0 - sum(widths)
    gap = 0.0 if len(groups) == 1 else free * (0.3 + 0.4 * rand())
    left = (free - gap) * (0.2 + 0.6 * rand())
    rows: dict[int, list[_Spot]] = {}
    for index in order:
        rows[index] = _row(groups[index], left + widths[index] / 2, y, rand)
        left += widths[index] + gap
    return [rows[index] for index in range(len(groups))]


def _row(group: Group, x: float, y: float, rand: Callable[[], float]) -> list[_Spot]:
    """Return spots around `x`, staggered in depth as things that somebody put down are."""
    step = SLOTS[group.size] / 12 * 0.97
    half = step * (group.count - 1) / 2
    edge = SCALES[group.size] * EXTENTS[group.kind][0] + 0.01
    x = min(max(x, half + edge), 1 - half - edge) if half + edge < 0.5 else 0.5
    phase = 1 if rand() < 0.5 else -1
    spots = []
    for i in range(group.count):
        depth = y + (phase * (0.026 if i % 2 else -0.026) if group.count > 1 else 0.0) + 0.014 * (rand() - 0.5)
        scale = SCALES[group.size] * (0.82 + 0.55 * (depth - 0.62))
        jitter = 0.12 * step * (rand() - 0.5)
        reach = EXTENTS[group.kind][0] * scale  # wide kinds may outgrow their slot, not the picture
        at = min(max(x - half + i * step + jitter, reach), 1 - reach)
        spots.append((at, min(depth, 0.965), scale))
    return spots


def _worst_share(groups: tuple[Group, ...], spots: list[list[_Spot]]) -> float:
    frames = [_frame(g.kind, spot) for g, row in zip(groups, spots, strict=True) for spot in row]
    inside = all(f[0] > -0.02 and f[2] < 1.02 and f[1] > 0.01 for f in frames)
    worst = min(_uncovered(f, [o for o in frames if o[3] > f[3]]) for f in frames)
    return worst if inside else worst - 0.5


def _frame(kind: str, spot: _Spot) -> tuple[float, float, float, float]:
    x, y, scale = spot
    half, height = EXTENTS[kind]
    return x - half * scale, y - height * scale, x + half * scale, y


def _uncovered(frame: tuple[float, float, float, float], nearer: list[tuple[float, float, float, float]]) -> float:
    left, top, right, bottom = frame
    hits = [o for o in nearer if o[0] < right and o[2] > left and o[1] < bottom]
    if not hits:
        return 1.0
    n = 8
    free = 0
    for i in range(n):
        x = left + (right - left) * (i + 0.5) / n
        for j in range(n):
            y = top + (bottom - top) * (j + 0.5) / n
            free += not any(o[0] < x < o[2] and o[1] < y < o[3] for o in hits)
    return free / (n * n)
