"""Ops without weights against the kernels of the reference."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from parity.comparison import Comparison, largest_difference, relative_error, rows_that_differ
from parity.golden import Arrays, stored
from regionclip_jax.ops.anchors import cell_anchors, grid_anchors
from regionclip_jax.ops.box_coder import (
    BOX_HEAD_WEIGHTS,
    RPN_WEIGHTS,
    decode_deltas,
    encode_deltas,
)
from regionclip_jax.ops.boxes import pairwise_iou
from regionclip_jax.ops.nms import nms, nms_by_group
from regionclip_jax.ops.proposals import select_proposals
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.soft_nms import soft_nms_per_class
from regionclip_jax.settings import NmsSettings
from regionclip_jax.structures import Regions

# --- RoIAlign -------------------------------------------------------------------------------------

IMPLEMENTATIONS = ("matmul", "matmul_rows", "gather")
# (stride, sampling ratio, output size, aligned) of the outputs in golden/roi_align.npz.
CROPS = (
    *[(s, 0, (7, 7), 1) for s in (4, 8, 16, 32)],
    *[(s, 2, (7, 7), 1) for s in (8, 16)],
    *[(s, r, (3, 5), 1) for s in (8, 16) for r in (0, 2)],
    (16, 0, (14, 14), 1),
    (16, 0, (7, 7), 0),
    (16, 2, (7, 7), 0),
)
# (stride, sampling ratio) of the gradients in golden/roi_align.npz.
GRADIENTS = ((8, 0), (8, 2), (16, 0), (16, 2))


def _by_image(rois, values, num_images):
    """Return [R, ...] as [B, R, ...], with zeros for the rows of other images."""
    in_image = rois[:, 0] == np.arange(num_images)[:, None]
    return np.where(in_image.reshape(*in_image.shape, *[1] * (values.ndim - 1)), values, 0)


def _roi_align_inputs(stride, dtype):
    """Return feature maps, all boxes for both images [2, R, 4], and rows with image indices."""
    arrays = stored("roi_align")
    features = jnp.asarray(arrays["feat"].transpose(0, 2, 3, 1), dtype)
    rois = arrays[f"rois_s{stride}"]
    boxes = jnp.asarray(np.broadcast_to(rois[:, 1:], (2, *rois[:, 1:].shape)))
    return arrays, features, boxes, rois


def compare_crops(
    roi_align_impl: str,
    stride: int,
    ratio: int,
    size: tuple[int, int],
    aligned: int,
    dtype=jnp.float32,
) -> list[Comparison]:
    """Compare crops of 53 boxes, 13 of them outside, degenerate or inverted."""
    arrays, features, boxes, rois = _roi_align_inputs(stride, dtype)
    name = f"s{stride}_sr{ratio}_{size[0]}x{size[1]}_al{aligned}"
    crops = jax.jit(
        lambda features, boxes: roi_align(
            features, boxes, size, 1 / stride,
            sampling_ratio=ratio, aligned=bool(aligned), implementation=roi_align_impl,
        )
    )(features, boxes)  # fmt: skip
    crops = np.asarray(crops).transpose(0, 1, 4, 2, 3)[rois[:, 0].astype(int), np.arange(len(rois))]
    error = relative_error(crops, arrays[f"out_{name}"])
    return [Comparison(f"crops {roi_align_impl} {name}", error, 1e-5)]


def compare_crop_gradients(
    roi_align_impl: str, stride: int, ratio: int, dtype=jnp.float32
) -> list[Comparison]:
    """Compare the gradient of a weighted sum of the crops with respect to the features."""
    arrays, features, boxes, rois = _roi_align_inputs(stride, dtype)
    name = f"s{stride}_sr{ratio}_7x7_al1"
    shape = arrays[f"out_{name}"].shape
    cotangent = np.random.default_rng(11).standard_normal(shape).astype(np.float32)
    cotangent = _by_image(rois, cotangent.transpose(0, 2, 3, 1), 2)

    def weighted_sum(features, boxes, cotangent):
        crops = roi_align(
            features, boxes, 7, 1 / stride, sampling_ratio=ratio, implementation=roi_align_impl
        )
        return (crops * cotangent).sum()

    gradient = jax.jit(jax.grad(weighted_sum))(features, boxes, cotangent)
    error = relative_error(gradient.transpose(0, 3, 1, 2), arrays[f"grad_{name}"])
    return [Comparison(f"gradient {roi_align_impl} {name}", error, 1e-5)]


def compare_roi_align(dtype=jnp.float32) -> list[Comparison]:
    """Compare "auto" in every stored case, and every implementation in some cases."""
    few = ((4, 0, (7, 7), 1), (8, 2, (3, 5), 1), (16, 0, (14, 14), 1), (16, 0, (7, 7), 0))
    comparisons = []
    for name in ("auto", *IMPLEMENTATIONS):
        for case in CROPS if name == "auto" else few:
            comparisons += compare_crops(name, *case, dtype)
        for case in GRADIENTS if name == "auto" else GRADIENTS[1:3]:
            comparisons += compare_crop_gradients(name, *case, dtype)
    return comparisons


# --- NMS ------------------------------------------------------------------------------------------

NMS_CASES = (*(("grid", t) for t in (0.3, 0.5, 0.7, 0.9)), ("rand", 0.3), ("rand", 0.7))
EDGE_THRESHOLDS = (0.0, 0.4999, 0.5, 0.5001, 1.0)


def _kept_rows_that_differ(actual, kept: np.ndarray) -> int:
    """Return the number of rows (index, mask) that differ from the zero-padded stored indices."""
    indices, real = (np.asarray(x) for x in actual)
    expected = np.zeros_like(indices)
    expected[: len(kept)] = kept
    return rows_that_differ(
        np.stack([indices, real], 1), np.stack([expected, np.arange(len(real)) < len(kept)], 1)
    )


def compare_kept_boxes(name: str, threshold: float) -> list[Comparison]:
    """Compare kept boxes and their order: 600 random boxes, or 400 on a grid.

    The grid has ties of scores and IoUs equal to the threshold.
    """
    arrays = stored("nms")
    boxes, scores = jnp.asarray(arrays[f"{name}_boxes"]), jnp.asarray(arrays[f"{name}_scores"])
    groups, mask = jnp.asarray(arrays[f"{name}_classes"]), jnp.ones(scores.shape, bool)
    how = dict(iou_threshold=threshold, max_outputs=scores.size)
    actual = {
        "nms": nms(boxes, scores, mask, **how),
        "batched": nms_by_group(boxes, scores, groups, mask, **how),
    }
    return [
        Comparison(f"{key} differ", _kept_rows_that_differ(rows, arrays[key]), 0.0)
        for variant, rows in actual.items()
        for key in [f"{name}_{variant}_{threshold}"]
    ]


def compare_edge_cases(threshold: float) -> list[Comparison]:
    """Compare kept boxes of six with areas in ratios of two, and with equal scores."""
    arrays = stored("nms")
    boxes, scores = jnp.asarray(arrays["edge_boxes"]), jnp.asarray(arrays["edge_scores"])
    actual = nms(boxes, scores, jnp.ones(6, bool), iou_threshold=threshold, max_outputs=6)
    key = f"edge_nms_{threshold}"
    return [Comparison(f"{key} differ", _kept_rows_that_differ(actual, arrays[key]), 0.0)]


def compare_many_boxes(arrays: Arrays) -> list[Comparison]:
    """Compare the kept boxes of 45,000, from the large file."""
    boxes, scores = jnp.asarray(arrays["big_boxes"]), jnp.asarray(arrays["big_scores"])
    groups = jnp.asarray(arrays["big_classes"], jnp.int32)
    mask = jnp.ones(scores.shape, bool)
    actual = nms_by_group(boxes, scores, groups, mask, iou_threshold=0.5, max_outputs=scores.size)
    error = _kept_rows_that_differ(actual, arrays["big_batched_0.5"])
    return [Comparison("big_batched_0.5 differ", error, 0.0)]


def compare_nms() -> list[Comparison]:
    """Compare every stored case of greedy NMS."""
    kept = [comparison for case in NMS_CASES for comparison in compare_kept_boxes(*case)]
    return kept + [one for threshold in EDGE_THRESHOLDS for one in compare_edge_cases(threshold)]


SOFT_METHODS = ("gaussian", "linear", "hard")
SOFT_NMS_CASES = tuple(
    (name, method, prune)
    for name in ("rand", "grid")
    for method in SOFT_METHODS
    for prune in (0.001, 0.05)
)


def compare_soft_picks(name: str, method: str, prune_threshold: float) -> list[Comparison]:
    """Compare the selected boxes of 300 and their lowered scores, in one class and in several.

    Each box is a candidate of one class. The reference shifts boxes to separate classes, which
    loses bits of the IoU.
    """
    arrays = stored("nms")
    boxes, scores, classes = (arrays[f"{name}_{x}"][:300] for x in ("boxes", "scores", "classes"))
    several = np.zeros((300, int(classes.max()) + 1), np.float32)
    several[np.arange(300), classes.astype(int)] = scores
    comparisons = []
    for variant, table, tolerance in (("soft", scores[:, None], 2e-7), ("bsoft", several, 5e-6)):
        key = f"{name}_{variant}_{method}_{prune_threshold}"
        indices, _, lowered, real = soft_nms_per_class(
            jnp.asarray(boxes), jnp.asarray(table), jnp.ones(300, bool), score_threshold=0.0,
            nms=NmsSettings(method, prune=prune_threshold), max_outputs=300,
        )  # fmt: skip
        differ = _kept_rows_that_differ((indices, real), arrays[f"{key}_keep"])
        expected = np.zeros(300, np.float32)
        expected[: len(arrays[f"{key}_scores"])] = arrays[f"{key}_scores"]
        comparisons += [
            Comparison(f"{key} picks differ", differ, 0.0),
            Comparison(f"{key} scores", largest_difference(lowered, expected), tolerance),
        ]
    return comparisons


def compare_soft_nms() -> list[Comparison]:
    """Compare every stored case of soft NMS."""
    return [comparison for case in SOFT_NMS_CASES for comparison in compare_soft_picks(*case)]


# --- boxes ----------------------------------------------------------------------------------------

BOX_CODER_WEIGHTS = {"rpn": RPN_WEIGHTS, "roi": BOX_HEAD_WEIGHTS}


def compare_encoded_boxes(name: str) -> list[Comparison]:
    """Compare deltas from boxes to targets."""
    arrays = stored("nms")
    boxes, targets = (jnp.asarray(arrays[f"bt_{x}"]) for x in ("src", "tgt"))
    actual = jax.jit(encode_deltas, static_argnums=2)(boxes, targets, BOX_CODER_WEIGHTS[name])
    error = relative_error(actual, arrays[f"bt_{name}_get"])
    return [Comparison(f"encoded deltas {name}", error, 2e-6)]


def compare_decoded_boxes(name: str) -> list[Comparison]:
    """Compare boxes (pixels) from three sets of deltas for each of 200 boxes, some clamped."""
    arrays = stored("nms")
    deltas = jnp.asarray(arrays["bt_deltas"]).reshape(200, 3, 4)
    boxes = jnp.asarray(arrays["bt_src"])[:, None]
    actual = jax.jit(decode_deltas, static_argnums=2)(deltas, boxes, BOX_CODER_WEIGHTS[name])
    expected = arrays[f"bt_{name}_apply"].reshape(200, 3, 4)
    return [Comparison(f"decoded boxes {name}, px", largest_difference(actual, expected), 1e-3)]


def compare_box_coder() -> list[Comparison]:
    """Compare both directions with the weights of both heads."""
    return [
        comparison
        for name in BOX_CODER_WEIGHTS
        for compare in (compare_encoded_boxes, compare_decoded_boxes)
        for comparison in compare(name)
    ]


def compare_iou() -> list[Comparison]:
    """Compare the IoUs of 60 x 50 boxes."""
    arrays = stored("nms")
    boxes, others = jnp.asarray(arrays["bt_src"][:60]), jnp.asarray(arrays["bt_tgt"][:50])
    error = largest_difference(jax.jit(pairwise_iou)(boxes, others), arrays["iou"])
    return [Comparison("iou", error, 1e-6)]


# --- proposals ------------------------------------------------------------------------------------

PRE_NMS_LIMITS = {"c4": 6000, "fpn": 1000}
PROPOSAL_CASES = tuple(
    (variant, threshold) for variant in PRE_NMS_LIMITS for threshold in (0.7, 0.9)
)
_RATIOS = (0.5, 1.0, 2.0)
_C4_SIZES = (32, 64, 128, 256, 512)


def _network_outputs(arrays: Arrays, variant: str):
    """Logits, deltas and anchors per level, in this package's layout."""
    logits, deltas, anchors = [], [], []
    for level in range(1 if variant == "c4" else 5):
        x = arrays[f"logits_l{level}"]
        batch, per_cell, height, width = x.shape
        logits.append(jnp.asarray(x.transpose(0, 2, 3, 1).reshape(batch, -1)))
        x = arrays[f"deltas_l{level}"].reshape(batch, per_cell, 4, height, width)
        deltas.append(jnp.asarray(x.transpose(0, 3, 4, 1, 2).reshape(batch, -1, 4)))
        sizes = _C4_SIZES if variant == "c4" else (32 * 2**level,)
        stride = 16 if variant == "c4" else 4 * 2**level
        anchors.append(grid_anchors(height, width, stride, cell_anchors(sizes, _RATIOS)))
    return logits, deltas, anchors


def _compare_same_proposals(
    name: str, actual: Regions, image: int, boxes: np.ndarray, logits: np.ndarray
) -> list[Comparison]:
    """Compare boxes (pixels) and logits row by row, in the order of the reference.

    Only ``rpn_fpn_rn50`` has two equal logits; all other logits differ.
    """
    scores, real = np.asarray(actual.scores[image]), np.asarray(actual.mask[image])
    differ = rows_that_differ(scores[: len(logits)], logits) + int((~real).sum())
    error = largest_difference(actual.boxes[image, : len(boxes)], boxes)
    return [
        Comparison(f"{name} rows differ", differ, 0.0),
        Comparison(f"{name} boxes, px", error, 1e-3),
    ]


def compare_proposals_of(variant: str, threshold: float) -> list[Comparison]:
    """Compare proposals from stored logits and deltas.

    C4: two images of different sizes, the first 250 boxes. FPN: the smaller image, all 1,000 boxes.
    The file has only the deltas of the best 1,000 of a level.
    """
    arrays = stored(f"proposals_{variant}_tiny")
    sizes = jnp.asarray(arrays["image_sizes"], jnp.int32)
    actual = select_proposals(
        *_network_outputs(arrays, variant), sizes,
        pre_nms_topk=PRE_NMS_LIMITS[variant], num_proposals=1000, nms_threshold=threshold,
    )  # fmt: skip
    comparisons = []
    for image in range(len(sizes)):
        suffix = f"{image}_nms{threshold}"
        comparisons += _compare_same_proposals(
            f"{variant} {suffix}",
            actual,
            image,
            arrays[f"boxes{suffix}"],
            arrays[f"logits{suffix}"],
        )
    return comparisons


def compare_all_proposals(name: str, arrays: Arrays) -> list[Comparison]:
    """Compare all proposals of one of the large files."""
    flags = json.loads(str(arrays["flags"]))
    sizes = jnp.asarray(arrays["image_sizes"], jnp.int32)
    actual = select_proposals(
        *_network_outputs(arrays, flags["kind"]), sizes,
        pre_nms_topk=flags["pre"], num_proposals=flags["post"], nms_threshold=flags["nms"],
    )  # fmt: skip
    comparisons = []
    for image in range(len(sizes)):
        boxes, logits = (arrays[f"{x}{image}"] for x in ("boxes", "objectness_logits"))
        comparisons += _compare_same_proposals(f"{name} {image}", actual, image, boxes, logits)
    return comparisons


def compare_proposals() -> list[Comparison]:
    """Compare every stored case of proposal selection."""
    return [comparison for case in PROPOSAL_CASES for comparison in compare_proposals_of(*case)]
