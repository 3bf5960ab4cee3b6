"""Render layouts to pixels and boxes."""

import numpy as np
from PIL import Image, ImageDraw

from regionclip_jax.data.scenes.layout import Layout, SceneObject
from regionclip_jax.data.scenes.outlines import OUTLINES
from regionclip_jax.data.scenes.vocabulary import COLOURS

# Scenes are drawn this many times larger and averaged down, for smooth edges.
_OVERSAMPLING = 2
# An object whose visible share is smaller has no box: it cannot be recognized.
MIN_VISIBLE = 0.35


def render(layout: Layout, side: int, clutter: int, rng: np.random.Generator):
    """Render a layout.

    Args:
        side: side of the image, in pixels.
        clutter: number of distractor lines behind the objects.
        rng: draws the noise, distractors and shades, which a layout does not define.

    Returns:
        ``(pixels uint8 [side, side, 3], boxes float32 [n, 4] xyxy, visible bool [n])``: tight boxes
        of the visible part of each object; ``visible`` marks objects with a sufficient part.
    """
    big = side * _OVERSAMPLING
    background = Image.fromarray(_background(layout.background, side, rng))
    canvas = background.resize((big, big), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for _ in range(clutter):
        start, length = rng.uniform(0, big, 2), rng.uniform(-0.25, 0.25, 2) * big
        shade = tuple(int(v) for v in rng.integers(30, 225, 3))
        draw.line([*start, *(start + length)], fill=shade, width=int(rng.integers(2, 7)))

    owner = Image.new("L", (big, big), 0)
    areas = []
    for index, item in enumerate(layout.objects, start=1):
        mask, corner = _mask(item, big)
        canvas.paste(_fill(item, mask.size, rng), corner, mask)
        owner.paste(index, corner, mask)
        areas.append(np.count_nonzero(np.asarray(mask)))

    pixels = np.asarray(canvas.reduce(_OVERSAMPLING), np.float32)
    pixels = pixels * np.float32(rng.uniform(0.75, 1.15))
    pixels += 6 * rng.standard_normal(pixels.shape, np.float32)
    owner_pixels = np.asarray(owner)
    boxes, visible = np.zeros((len(areas), 4), np.float32), np.zeros(len(areas), bool)
    for index, area in enumerate(areas):
        own = owner_pixels == index + 1
        if np.count_nonzero(own) >= max(1, MIN_VISIBLE * area):
            visible[index] = True
            ys, xs = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            boxes[index] = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    return pixels.clip(0, 255).astype(np.uint8), boxes / _OVERSAMPLING, visible


def _polygons(item: SceneObject, scale: int):
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    stretch = np.array([item.aspect**0.5, item.aspect**-0.5])
    for points, solid in OUTLINES[item.shape]:
        placed = (points * stretch) @ rotation * (item.size / 2) + np.array(item.centre)
        yield placed * scale, solid


def _mask(item: SceneObject, big: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return the object's silhouette on a tight tile, and the tile's corner on the canvas."""
    polygons = list(_polygons(item, _OVERSAMPLING))
    points = np.concatenate([points for points, _ in polygons])
    low = np.floor(points.min(0)).clip(0, big - 1).astype(int)
    high = (np.ceil(points.max(0)) + 1).clip(low + 1, big).astype(int)
    mask = Image.new("L", tuple(int(v) for v in high - low), 0)
    draw = ImageDraw.Draw(mask)
    for points, solid in polygons:
        draw.polygon([tuple(p) for p in points - low], fill=255 if solid else 0)
    return mask, (int(low[0]), int(low[1]))


def _shade(name: str, rng) -> np.ndarray:
    return (np.array(COLOURS[name], np.float32) + rng.normal(0, 14, 3)).clip(0, 255)


def _fill(item: SceneObject, tile: tuple[int, int], rng) -> Image.Image:
    first, second = _shade(item.colour, rng), _shade(item.second_colour, rng)
    if item.texture == "plain":
        return Image.new("RGB", tile, tuple(int(v) for v in first))
    period = max(6.0, item.size * _OVERSAMPLING / 5)
    y, x = np.mgrid[0 : tile[1], 0 : tile[0]].astype(np.float32) / period
    if item.texture == "striped":
        chosen = ((x + y) % 1.0) < 0.5
    elif item.texture == "dotted":
        chosen = ((x % 1.0 - 0.5) ** 2 + (y % 1.0 - 0.5) ** 2) < 0.09
    else:
        chosen = (x.astype(np.int32) + y.astype(np.int32)) % 2 == 0
    return Image.fromarray(np.where(chosen[..., None], first, second).astype(np.uint8))


def _background(name: str, side: int, rng) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    if name == "sand":
        pixels = np.array([205, 180, 130]) + 14 * rng.standard_normal((side, side, 1))
    elif name == "grass":
        blades = rng.standard_normal((side // 4, side, 1)).repeat(4, 0)[:side]
        pixels = np.array([70, 125, 60]) + 22 * blades
    elif name == "water":
        waves = np.sin(2 * np.pi * (y * rng.uniform(6, 9) + 0.3 * np.sin(9 * x)))[..., None]
        pixels = np.array([70, 130, 175]) + 18 * waves
    elif name == "brick":
        row = (y * 9).astype(np.int32)
        joint = ((y * 9) % 1 < 0.16) | (((x * 5 + 0.5 * (row % 2)) % 1) < 0.09)
        pixels = np.where(joint[..., None], (185, 175, 165), (150, 75, 60))
    elif name == "night":
        stars = rng.random((side, side, 1)) < 0.012
        pixels = np.array([22, 24, 48]) + 180 * stars + 20 * y[..., None]
    else:
        pixels = np.array([178, 184, 190]) + 28 * (y - 0.5)[..., None]
    return (pixels + rng.normal(0, 7, 3)).clip(0, 255).astype(np.uint8)
