"""The localizer (region proposal network) against the two variants of the reference."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from parity import golden
from parity.comparison import Comparison, relative_error
from regionclip_jax.models.localizer import Localizer, LocalizerConfig, propose
from regionclip_jax.settings import ProposalSettings

# Stride between the cells in the golden file, for each level.
STEPS = {"c4": (2,), "fpn": (6, 4, 2, 1, 1)}
# Additional (height, width) of a canvas beyond the image, in pixels.
MARGINS = ((0, 0), (64, 32))


@functools.cache
def tiny_localizer(variant: str) -> tuple[LocalizerConfig, dict]:
    """Return config and variables of the reference's tiny localizer, "c4" or "fpn"."""
    return golden.localizer(f"tiny_rpn_{variant}")


def _on_canvas(image: np.ndarray, canvas: tuple[int, int]):
    """Return an RGB image [3, h, w] at the top left of a canvas, and its size."""
    images = np.zeros((1, *canvas, 3), np.uint8)
    images[0, : image.shape[1], : image.shape[2]] = image.transpose(1, 2, 0)
    return jnp.asarray(images), jnp.array([image.shape[1:]], jnp.int32)


def _cells(config: LocalizerConfig, canvas) -> list[tuple[int, int]]:
    """Return the height and width of each level."""
    return [tuple(-(-side // stride) for side in canvas) for stride in config.strides]


def _to_maps(levels, cells, per_anchor: int) -> list[np.ndarray]:
    """Return outputs [B, anchors(, 4)] of each level as NCHW maps of the reference."""
    maps = []
    for x, (height, width) in zip(levels, cells, strict=True):
        x = np.asarray(x).reshape(len(x), height, width, -1, per_anchor)
        maps.append(x.transpose(0, 3, 4, 1, 2).reshape(len(x), -1, height, width))
    return maps


def compare_head_outputs(
    variant: str, margin: tuple[int, int] = (0, 0), dtype=jnp.float32
) -> list[Comparison]:
    """Compare logits and deltas of every level.

    Args:
        margin: additional (height, width) of the canvas in pixels. Only the cells of the
            reference's canvas are compared.
    """
    arrays = golden.stored("localizer_tiny")
    config, variables = tiny_localizer(variant)
    fitting = [int(side) for side in arrays[f"{variant}_canvas"]]
    canvas = tuple(side + more for side, more in zip(fitting, margin, strict=True))
    inputs = _on_canvas(arrays["image0_uint8"], canvas)
    outputs = jax.jit(Localizer(config, dtype=dtype).apply)(variables, *inputs)
    comparisons = []
    for output, levels, per_anchor in zip(("logits", "deltas"), outputs, (1, 4), strict=True):
        maps = _to_maps(levels, _cells(config, canvas), per_anchor)
        for level, (height, width) in enumerate(_cells(config, fitting)):
            step, name = STEPS[variant][level], f"{variant}_{output}_l{level}"
            error = relative_error(maps[level][:, :, :height:step, :width:step], arrays[name])
            comparisons.append(Comparison(f"{name} margin {margin}", error, 1e-5))
    return comparisons


def compare_res4(dtype=jnp.float32) -> list[Comparison]:
    """Compare the C4 trunk's feature map."""
    arrays = golden.stored("localizer_tiny")
    config, variables = tiny_localizer("c4")
    localizer = Localizer(config, dtype=dtype)
    trunk = jax.jit(functools.partial(localizer.apply, method=localizer.feature_levels))
    (res4,) = trunk(variables, *_on_canvas(arrays["image0_uint8"], (252, 448)))
    actual = res4.transpose(0, 3, 1, 2)[:, ::4, ::2, ::2]
    return [Comparison("c4_feat", relative_error(actual, arrays["c4_feat"]), 1e-5)]


def compare_proposals_of_resnet50(variant: str, folder: Path) -> list[Comparison]:
    """Compare logits and proposals of a full ResNet-50, from the folder of large files.

    From pixels, nearly equal logits may swap their order, so fractions of boxes are compared. Boxes
    within 0.05 px count as matched.
    """
    arrays = golden.load(f"rpn_{variant}_rn50", folder)
    config, variables = golden.localizer(f"rn50_detector_rpn_{variant}", folder)
    localizer = Localizer(config)
    canvas = tuple(int(side) for side in arrays["padded_shape"][-2:])
    images, sizes = _on_canvas(arrays["image0_uint8"], canvas)
    logits, _ = jax.jit(localizer.apply)(variables, images, sizes)
    comparisons = [
        Comparison(f"logits_l{level}", relative_error(x, arrays[f"logits_l{level}"][:1]), 1e-4)
        for level, x in enumerate(_to_maps(logits, _cells(config, canvas), 1))
    ]
    limit = 6000 if variant == "c4" else 1000
    actual = jax.jit(
        lambda v, i, s: propose(localizer, v, i, s, ProposalSettings(pre_nms_topk=limit))
    )(variables, images, sizes)
    expected = arrays["boxes0"]
    missing = abs(int(actual.mask[0].sum()) - len(expected))
    distance = np.abs(np.asarray(actual.boxes[0])[None] - expected[:, None]).max(-1)
    return comparisons + [
        Comparison("number of boxes", missing, 0.0),
        Comparison("boxes not matched", float((distance.min(1) >= 0.05).mean()), 0.01),
        Comparison("rows not matched", float((np.diagonal(distance) >= 0.05).mean()), 0.05),
    ]


def compare_localizer(dtype=jnp.float32) -> list[Comparison]:
    """Compare the head outputs of both variants on both canvases, and the C4 trunk's map."""
    heads = [
        comparison
        for variant in STEPS
        for margin in MARGINS
        for comparison in compare_head_outputs(variant, margin, dtype)
    ]
    return heads + compare_res4(dtype)
