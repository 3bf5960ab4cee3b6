"""Outlines of the shapes as polygons in the square [-1, 1]^2, y downwards.

Each shape is a list of (points, is_solid): solid polygons are filled, the others are holes.
"""

import numpy as np


def _ellipse(cx=0.0, cy=0.0, rx=1.0, ry=1.0, start=0.0, end=2 * np.pi, steps=36):
    t = np.linspace(start, end, steps)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def _points(*pairs):
    return np.array(pairs, np.float64)


def _star(points=5, inner=0.42):
    t = -np.pi / 2 + np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], 1)


def _flower(petals=5):
    t = np.linspace(0, 2 * np.pi, 80)
    radius = 0.68 + 0.32 * np.cos(petals * t)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], 1)


def _heart():
    t = np.linspace(0, 2 * np.pi, 48)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, (y - y.mean()) / 16], 1)


def _moon():
    outer = _ellipse(start=np.pi * 0.3, end=np.pi * 1.7)
    inner = _ellipse(cx=0.42, rx=0.85, ry=0.81, start=np.pi * 1.62, end=np.pi * 0.38)
    return np.concatenate([outer, inner])


def _drop():
    round_part = _ellipse(cy=0.32, rx=0.66, ry=0.66, start=-np.pi * 0.12, end=np.pi * 1.12)
    return np.concatenate([round_part, _points((0.0, -1.0))])


def _cross(arm=0.34):
    a = arm
    return _points(
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
        (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a),
    )  # fmt: skip


OUTLINES: dict[str, list[tuple[np.ndarray, bool]]] = {
    "circle": [(_ellipse(rx=0.95, ry=0.95), True)],
    "square": [(_points((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)), True)],
    "triangle": [(_points((0, -0.95), (0.98, 0.8), (-0.98, 0.8)), True)],
    "star": [(_star(), True)],
    "cross": [(_cross(), True)],
    "ring": [(_ellipse(rx=0.97, ry=0.97), True), (_ellipse(rx=0.52, ry=0.52), False)],
    "house": [
        (_points((0, -1), (1, -0.1), (0.72, -0.1), (0.72, 0.95), (-0.72, 0.95), (-0.72, -0.1),
                 (-1, -0.1)), True),
        (_points((-0.2, 0.95), (-0.2, 0.3), (0.2, 0.3), (0.2, 0.95)), False),
    ],
    "tree": [
        (_points((0, -1), (0.5, -0.35), (0.28, -0.35), (0.75, 0.35), (0.16, 0.35), (0.16, 1),
                 (-0.16, 1), (-0.16, 0.35), (-0.75, 0.35), (-0.28, -0.35), (-0.5, -0.35)), True),
    ],
    "arrow": [
        (_points((1, 0), (0.15, -0.8), (0.15, -0.28), (-1, -0.28), (-1, 0.28), (0.15, 0.28),
                 (0.15, 0.8)), True),
    ],
    "moon": [(_moon(), True)],
    "bolt": [
        (_points((0.25, -1), (-0.65, 0.15), (-0.1, 0.15), (-0.35, 1), (0.65, -0.25), (0.08, -0.25),
                 (0.6, -1)), True),
    ],
    "flower": [(_flower(), True), (_ellipse(rx=0.2, ry=0.2), False)],
    "heart": [(_heart(), True)],
    "fish": [
        (_ellipse(cx=-0.25, rx=0.72, ry=0.5), True),
        (_points((0.3, 0), (1, -0.6), (1, 0.6)), True),
        (_ellipse(cx=-0.6, cy=-0.14, rx=0.09, ry=0.09, steps=12), False),
    ],
    "key": [
        (_ellipse(cx=-0.6, rx=0.4, ry=0.44), True),
        (_points((-0.3, -0.13), (1, -0.13), (1, 0.45), (0.78, 0.45), (0.78, 0.13), (0.55, 0.13),
                 (0.55, 0.4), (0.33, 0.4), (0.33, 0.13), (-0.3, 0.13)), True),
        (_ellipse(cx=-0.6, rx=0.18, ry=0.2, steps=20), False),
    ],
    "drop": [(_drop(), True)],
}  # fmt: skip
