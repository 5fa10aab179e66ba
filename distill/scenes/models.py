"""The solid models of all kinds, built from `surfaces`."""

from collections.abc import Callable
from typing import Final

import numpy as np

from pocketlens.distill.scenes.surfaces import Material, Patch, ball, box, flat, loft, puff, revolve, tube

__all__ = ["MODELS", "YAWS"]

_OWN: Final = Material()
_MATTE: Final = Material(gloss=0.06)
_SHINY: Final = Material(gloss=0.8)
_WHITE: Final = Material(tint=0.0, rgb=(0.86, 0.86, 0.84), gloss=0.2)
_BLACK: Final = Material(tint=0.0, rgb=(0.012, 0.012, 0.015), gloss=0.5)
_RUBBER: Final = Material(tint=0.0, rgb=(0.02, 0.02, 0.022), gloss=0.1)
_STEEL: Final = Material(tint=0.0, rgb=(0.45, 0.46, 0.48), gloss=0.7)
_WOOD: Final = Material(tint=0.0, rgb=(0.16, 0.075, 0.03), gloss=0.05)
_CREAM: Final = Material(tint=0.0, rgb=(0.80, 0.70, 0.52), gloss=0.1)
_SLATE: Final = Material(tint=0.0, rgb=(0.075, 0.06, 0.065), gloss=0.1)
_BEAK: Final = Material(tint=0.0, rgb=(0.85, 0.26, 0.02), gloss=0.4)
_GLASS: Final = Material(tint=0.0, rgb=(0.05, 0.10, 0.16), gloss=1.0)
_WINDOW: Final = Material(tint=0.0, rgb=(0.55, 0.46, 0.22), gloss=0.3, glow=1.0)
_THIN: Final = 0.02
_LAMP: Final = Material(tint=0.0, rgb=(0.9, 0.85, 0.6), gloss=0.5, glow=1.0)


def _ball() -> list[Patch]:
    return [ball((0, 0.45, 0), (0.45, 0.45, 0.45), _SHINY)]


def _cube() -> list[Patch]:
    return [box((0, 0.38, 0), (0.38, 0.38, 0.38), _OWN, bevel=0.035)]


def _cone() -> list[Patch]:
    def radius(y: float) -> float:
        return 0.36 * (1 - y / 1.04) + 0.012

    band = [(radius(0.42) + 0.006, 0.42), (radius(0.60) + 0.006, 0.60)]
    return [
        box((0, 0.035, 0), (0.40, 0.035, 0.40), _OWN, bevel=0.03),
        revolve([(radius(0.06), 0.06), (radius(1.0), 1.0), (0.0, 1.02)], _OWN),
        revolve(band, _WHITE),
    ]


def _star() -> list[Patch]:
    angle = np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 0.54, 0.245)
    outline = np.stack([reach * np.cos(angle), 0.47 + reach * np.sin(angle)], axis=1)
    return [puff(outline, 0.17, _SHINY, centre=(0, 0.47), power=1.6)]


def _heart() -> list[Patch]:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack([x * 0.0305, (y + 17) * 0.0325], axis=1)
    return [puff(outline, 0.24, _SHINY, centre=(0, 0.58), power=2.6)]


def _tree() -> list[Patch]:
    blobs = [
        (0.0, 0.86, 0.0, 0.29),
        (-0.22, 0.66, 0.06, 0.23),
        (0.23, 0.68, 0.04, 0.23),
        (0.02, 0.62, 0.20, 0.25),
        (-0.12, 0.84, 0.14, 0.20),
        (0.14, 0.90, 0.10, 0.19),
    ]
    crown = [_bumpy(ball((x, y, z), (r, r * 0.92, r), _MATTE)) for x, y, z, r in blobs]
    trunk = revolve([(0.13, 0.0), (0.085, 0.10), (0.075, 0.55)], _WOOD, smooth=True)
    return [trunk, *crown]


def _bumpy(patch: Patch) -> Patch:
    """Return `patch` with leafy normals."""
    p = patch.points * 31
    waves = np.stack(
        [np.sin(p[:, 1] + 1.3 * p[:, 2]), np.sin(p[:, 0] + 1.7 * p[:, 2]), np.sin(p[:, 0] - 1.1 * p[:, 1])],
        axis=1,
    )
    normals = patch.normals + 0.32 * waves.astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return patch._replace(normals=normals)


def _house() -> list[Patch]:
    w, d, h, top, over = 0.40, 0.30, 0.52, 0.92, 0.07
    slope = (top - h) / w
    eave = h - slope * over
    z = d + over
    parts = [
        box((0, h / 2, 0), (w, h / 2, d), _MATTE, bevel=0.008),
        flat([(-w, h, d), (w, h, d), (0, top - 0.02, d)], _MATTE),
        flat([(w, h, -d), (-w, h, -d), (0, top - 0.02, -d)], _MATTE),
        flat([(0, top, -z), (0, top, z), (w + over, eave, z), (w + over, eave, -z)], _SLATE),
        flat([(0, top, z), (0, top, -z), (-w - over, eave, -z), (-w - over, eave, z)], _SLATE),
        box((-0.21, 0.83, -0.06), (0.055, 0.15, 0.055), _WOOD, bevel=0.008),
        box((0, 0.15, d), (0.085, 0.15, 0.012), _WOOD, bevel=0.006),
        ball((0.05, 0.15, d + 0.02), (0.014, 0.014, 0.014), _LAMP),
    ]
    for side in (-1, 1):  # a rim of bargeboard makes the roof look thick
        edge = [(0.0, top - 0.02, z), (side * (w + over), eave - 0.02, z)]
        parts.append(tube(edge, 0.026, _WHITE))
        parts += _pane((side * 0.245, 0.30, d), (0.075, 0.085, 0.012))
    for x in (-0.13, 0.13):
        parts += _pane((w, 0.30, x), (0.012, 0.085, 0.07))
        parts += _pane((-w, 0.30, x), (0.012, 0.085, 0.07))
    parts += _pane((0, 0.62, d), (0.06, 0.06, 0.012))
    return parts


def _pane(centre: tuple[float, float, float], half: tuple[float, float, float]) -> list[Patch]:
    """Return a lit window and its frame; a `half` under `_THIN` is the direction it looks in."""
    rim = [x if x < _THIN else x + 0.018 for x in half]
    glass = [x + 0.006 if x < _THIN else x for x in half]
    rim[1] = half[1] + 0.018
    return [
        box(centre, (rim[0], rim[1], rim[2]), _WHITE, bevel=0.004),
        box(centre, (glass[0], glass[1], glass[2]), _WINDOW, bevel=0.004),
    ]


def _car() -> list[Patch]:
    around = np.linspace(0, 2 * np.pi, 150)
    # Cross sections are squarish superellipses.
    wide, tall = (np.sign(f) * np.abs(f) ** 0.32 for f in (np.cos(around), np.sin(around)))

    def body(keys: list[tuple[float, float, float, float]], material: Material) -> Patch:
        """Return the shell through sections given as (x, lower y, upper y, half width)."""
        table = np.asarray(keys)
        x = np.linspace(table[0, 0], table[-1, 0], 220)
        lower, upper, half = (np.interp(x, table[:, 0], table[:, i])[:, None] for i in (1, 2, 3))
        y = (upper + lower) / 2 + (upper - lower) / 2 * tall
        return loft(np.stack([x[:, None] + 0 * y, y, half * wide], axis=-1), material)

    hull = [
        (-0.64, 0.30, 0.30, 0.05),
        (-0.63, 0.16, 0.36, 0.22),
        (-0.55, 0.10, 0.39, 0.25),
        (0.25, 0.10, 0.38, 0.25),
        (0.55, 0.10, 0.33, 0.245),
        (0.63, 0.14, 0.29, 0.21),
        (0.64, 0.24, 0.24, 0.05),
    ]
    cabin = [
        (-0.52, 0.36, 0.37, 0.22),
        (-0.34, 0.36, 0.585, 0.19),
        (0.06, 0.36, 0.60, 0.19),
        (0.32, 0.36, 0.37, 0.22),
    ]
    roof = [
        (-0.36, 0.57, 0.59, 0.16),
        (-0.30, 0.575, 0.617, 0.185),
        (0.04, 0.575, 0.627, 0.185),
        (0.09, 0.57, 0.59, 0.16),
    ]
    parts = [body(hull, _SHINY), body(cabin, _GLASS), body(roof, _SHINY)]
    for x in (-0.36, 0.36):
        for side in (-1, 1):
            parts.append(_wheel(x, side * 0.245, 0.135, 0.045, _RUBBER))
            parts.append(_wheel(x, side * 0.265, 0.07, 0.032, _STEEL))
    for side in (-1, 1):
        parts.append(ball((0.615, 0.245, side * 0.15), (0.03, 0.04, 0.045), _LAMP))
        pillar = [(-0.13, 0.37, side * 0.215), (-0.13, 0.58, side * 0.185)]
        parts.append(tube(pillar, 0.022, _SHINY))
    return parts


def _wheel(x: float, z: float, radius: float, half: float, material: Material) -> Patch:
    disc = revolve(
        [
            (0.0, -half),
            (radius * 0.92, -half),
            (radius, -half * 0.6),
            (radius, half * 0.6),
            (radius * 0.92, half),
            (0.0, half),
        ],
        material,
    )
    turn = np.asarray([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)  # axis y -> z
    move = np.asarray([x, 0.135, z], dtype=np.float32)
    return Patch(disc.points @ turn + move, disc.normals @ turn, material)


def _boat() -> list[Patch]:
    up = np.linspace(0, 1, 70)[:, None]  # keel to gunwale
    around = np.linspace(0, 2 * np.pi, 330)
    bow = np.where(np.cos(around) < 0, 1.0, 1.06)
    x = (0.34 + 0.17 * up) * bow * np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.8
    y = 0.30 * up + 0.05 * up * (x / 0.52) ** 2
    z = 0.24 * (0.45 + 0.55 * up**0.6) * np.sin(around)
    rows = np.stack([x, y, z], axis=-1)
    hull = loft(rows, _OWN)
    stripe = loft(rows[50:61] * (1.012, 1.0, 1.025), _WHITE)
    deck = puff(rows[-1, ::6][:, [0, 2]], 0.001, _WOOD)
    turn = np.asarray([[1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=np.float32)
    deck = Patch(
        deck.points @ turn + np.asarray([0, 0.27, 0], dtype=np.float32),
        np.tile(np.asarray([[0, 1, 0]], dtype=np.float32), (len(deck.points), 1)),
        _WOOD,
    )
    mast = tube([(0.02, 0.25, 0), (0.02, 1.10, 0)], 0.018, _WOOD)
    main = np.asarray([(-0.01, 0.40), (-0.44, 0.42), (-0.26, 0.72), (-0.01, 1.06)])
    jib = np.asarray([(0.06, 0.42), (0.44, 0.40), (0.27, 0.62), (0.06, 0.94)])
    sails = [
        puff(main, 0.05, _MATTE, centre=(-0.12, 0.6)),
        puff(jib, 0.04, Material(tint=0.25, rgb=(0.62, 0.62, 0.60), gloss=0.05), centre=(0.17, 0.56)),
    ]
    return [hull, deck, mast, *sails, stripe]


def _fish() -> list[Patch]:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    body = np.stack([0.10 + 0.40 * np.cos(t), 0.40 + 0.27 * np.sin(t) * (1 + 0.18 * np.cos(t))], axis=1)
    tail = np.asarray([(-0.22, 0.40), (-0.40, 0.56), (-0.60, 0.68), (-0.52, 0.40), (-0.60, 0.12), (-0.40, 0.24)])
    top = np.asarray([(0.26, 0.60), (0.10, 0.64), (-0.10, 0.58), (-0.16, 0.76), (0.02, 0.82), (0.14, 0.77)])
    belly = np.asarray([(0.16, 0.18), (-0.02, 0.17), (-0.14, 0.03), (-0.02, 0.02), (0.10, 0.08)])
    fin = Material(tint=0.72, rgb=(0.02, 0.02, 0.02), gloss=0.3)
    side = np.asarray([(0.08, 0.40), (-0.02, 0.46), (-0.14, 0.42), (-0.15, 0.32), (-0.02, 0.32)])
    parts = [
        puff(body, 0.17, _SHINY, centre=(0.10, 0.40), power=2.2),
        puff(tail, 0.05, fin, centre=(-0.40, 0.40)),
        puff(top, 0.035, fin, centre=(0.05, 0.68)),
        puff(belly, 0.035, fin, centre=(0.0, 0.1)),
    ]
    for sign in (-1, 1):
        parts += [
            puff(side, 0.03, fin, centre=(-0.04, 0.39), z=sign * 0.17),
            ball((0.31, 0.47, sign * 0.115), (0.066, 0.066, 0.035), _WHITE),
            ball((0.325, 0.47, sign * 0.142), (0.036, 0.036, 0.02), _BLACK),
        ]
    return parts


def _mushroom() -> list[Patch]:
    stem = revolve([(0.20, 0.0), (0.17, 0.08), (0.125, 0.30), (0.14, 0.5)], _CREAM, smooth=True)
    under = revolve([(0.1, 0.50), (0.44, 0.47)], Material(tint=0.0, rgb=(0.66, 0.56, 0.42), gloss=0.02))
    bend = np.linspace(0, np.pi / 2, 30)
    dome = [(0.44, 0.465)] + [(0.46 * float(np.cos(a)) ** 0.9, 0.50 + 0.42 * float(np.sin(a))) for a in bend]
    parts = [stem, under, revolve(dome, _SHINY)]
    for height, turn, size in (
        (0.22, 0.35, 0.075),
        (0.30, 1.35, 0.085),
        (0.16, 2.2, 0.07),
        (0.24, 2.95, 0.075),
        (0.62, 0.75, 0.075),
        (0.70, 2.3, 0.085),
        (0.22, 4.2, 0.08),
        (0.30, 5.3, 0.08),
        (0.66, 4.6, 0.08),
        (1.45, 1.5, 0.085),
    ):
        r = 0.46 * float(np.cos(height)) ** 0.9
        spot = (r * float(np.cos(turn)), 0.50 + 0.42 * float(np.sin(height)), r * float(np.sin(turn)))
        n = np.asarray([spot[0] / 0.46**2, (spot[1] - 0.5) / 0.42**2, spot[2] / 0.46**2])
        parts.append(_disc(spot, n / np.linalg.norm(n), size))
    return parts


def _disc(centre: tuple[float, float, float], normal: np.ndarray, radius: float) -> Patch:
    """Return a slightly raised round spot."""
    spot = ball((0, 0, 0), (radius, 0.014, radius), _WHITE)
    side = np.cross(normal, (0.0, 0.0, 1.0) if abs(normal[2]) < 0.9 else (1.0, 0.0, 0.0))
    side /= np.linalg.norm(side)
    turn = np.stack([side, normal, np.cross(side, normal)]).astype(np.float32)
    return Patch(spot.points @ turn + np.asarray(centre, dtype=np.float32), spot.normals @ turn, _WHITE)


def _balloon() -> list[Patch]:
    bend = np.linspace(0, np.pi, 60)
    egg = [(0.345 * float(np.sin(a)) * (1 - 0.13 * float(np.cos(a))), 0.97 - 0.41 * float(np.cos(a))) for a in bend]
    knot = revolve([(0.055, 0.50), (0.012, 0.565)], _OWN)
    wave = np.linspace(0, 1, 30)
    string = [(0.035 * float(np.sin(5 * w)) * (1 - float(w)), 0.52 * float(w), 0.0) for w in wave]
    return [revolve(egg, _SHINY), knot, tube(string, 0.011, _WHITE)]


def _cup() -> list[Patch]:
    inside = Material(tint=0.55, rgb=(0.03, 0.03, 0.03), gloss=0.1)
    drink = Material(tint=0.0, rgb=(0.035, 0.014, 0.006), gloss=0.4)
    wall = [(0.0, 0.0), (0.29, 0.0), (0.33, 0.03), (0.345, 0.12), (0.36, 0.80), (0.35, 0.825), (0.335, 0.80)]
    bend = np.linspace(-1.75, 1.75, 40)
    handle = [(0.35 + 0.22 * float(np.cos(a)), 0.43 + 0.24 * float(np.sin(a)), 0.0) for a in bend]
    return [
        revolve(wall, _SHINY),
        revolve([(0.325, 0.5), (0.335, 0.81)], inside, inward=True),
        revolve([(0.328, 0.66), (0.0, 0.66)], drink),
        tube(handle, 0.048, _SHINY),
    ]


def _duck() -> list[Patch]:
    wing_t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    wing = np.stack([-0.10 + 0.24 * np.cos(wing_t), 0.33 + 0.13 * np.sin(wing_t) - 0.06 * np.cos(wing_t)], axis=1)
    darker = Material(tint=0.82, gloss=0.25)
    parts = [
        ball((-0.04, 0.29, 0), (0.42, 0.29, 0.30), _OWN),
        ball((-0.34, 0.43, 0), (0.17, 0.12, 0.14), _OWN),
        ball((-0.43, 0.50, 0), (0.09, 0.08, 0.08), _OWN),
        ball((0.18, 0.48, 0), (0.17, 0.2, 0.17), _OWN),
        ball((0.20, 0.69, 0), (0.235, 0.235, 0.225), _OWN),
        ball((0.46, 0.665, 0), (0.13, 0.038, 0.10), _BEAK),
        ball((0.45, 0.63, 0), (0.10, 0.03, 0.08), _BEAK),
    ]
    for sign in (-1, 1):
        parts += [
            puff(wing, 0.07, darker, centre=(-0.10, 0.33), z=sign * 0.27),
            ball((0.325, 0.755, sign * 0.165), (0.043, 0.052, 0.035), _WHITE),
            ball((0.35, 0.757, sign * 0.185), (0.027, 0.034, 0.02), _BLACK),
        ]
    return parts


MODELS: Final[dict[str, Callable[[], list[Patch]]]] = {
    "ball": _ball,
    "cube": _cube,
    "cone": _cone,
    "star": _star,
    "heart": _heart,
    "tree": _tree,
    "house": _house,
    "car": _car,
    "boat": _boat,
    "fish": _fish,
    "mushroom": _mushroom,
    "balloon": _balloon,
    "cup": _cup,
    "duck": _duck,
}
"""Builder of each kind's model."""

YAWS: Final = {
    "ball": (0.0, 0.0),
    "cube": (28.0, 40.0),
    "cone": (25.0, 45.0),
    "star": (8.0, 24.0),
    "heart": (6.0, 24.0),
    "tree": (0.0, 70.0),
    "house": (-28.0, -38.0),
    "car": (-18.0, -34.0),
    "boat": (-14.0, -30.0),
    "fish": (-10.0, -26.0),
    "mushroom": (0.0, 60.0),
    "balloon": (0.0, 20.0),
    "cup": (-12.0, -35.0),
    "duck": (-12.0, -32.0),
}
"""By how many degrees each pose is turned about the vertical axis."""
