"""Draw the layout of a synthetic scene: objects, their appearance and their positions."""

import dataclasses

import numpy as np

from regionclip_jax.data.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    TYPICAL_LOOKS,
)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """Object. ``centre`` and ``size`` (side of its square) in pixels, ``angle`` in radians."""

    shape: str
    colour: str
    second_colour: str
    texture: str
    centre: tuple[float, float]
    size: float
    aspect: float
    angle: float


@dataclasses.dataclass(frozen=True)
class Layout:
    """Scene before it is rendered; later objects cover earlier ones."""

    background: str
    objects: tuple[SceneObject, ...]


def draw_layout(
    rng: np.random.Generator,
    side: int,
    num_objects: tuple[int, int],
    sizes: tuple[float, float],
    overlap: float,
    typicality: float,
) -> Layout:
    """Draw a random layout on a square image of ``side`` pixels.

    Args:
        num_objects: smallest and largest number of objects.
        sizes: smallest and largest size of an object, as a share of the side (log-uniform).
        overlap: largest intersection of two objects' squares, as a share of the smaller square.
        typicality: probability of the category's typical colour, and likewise texture.
    """
    wanted = int(rng.integers(num_objects[0], num_objects[1] + 1))
    objects: list[SceneObject] = []
    squares: list[tuple[float, float, float, float]] = []
    for _ in range(wanted * 8):
        if len(objects) == wanted:
            break
        size = side * float(np.exp(rng.uniform(np.log(sizes[0]), np.log(sizes[1]))))
        margin = 0.45 * size
        x, y = rng.uniform(margin, side - margin, 2)
        square = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
        if any(_shared(square, other) > overlap for other in squares):
            continue
        shape = str(rng.choice(SHAPES))
        colour, texture = TYPICAL_LOOKS[shape]
        if rng.random() > typicality:
            colour = str(rng.choice(list(COLOURS)))
        if rng.random() > typicality:
            texture = str(rng.choice(TEXTURES))
        objects.append(
            SceneObject(
                shape=shape,
                colour=colour,
                second_colour=str(rng.choice([name for name in COLOURS if name != colour])),
                texture=texture,
                centre=(float(x), float(y)),
                size=size,
                aspect=float(np.exp(rng.uniform(-0.2, 0.2))),
                angle=float(rng.uniform(-0.35, 0.35)),
            )
        )
        squares.append(square)
    return Layout(str(rng.choice(BACKGROUNDS)), tuple(objects))


def _shared(a, b) -> float:
    """Return the intersection over the smaller square."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) ** 2, (b[2] - b[0]) ** 2)
