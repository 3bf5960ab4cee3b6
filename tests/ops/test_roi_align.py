"""RoIAlign against the kernel of the reference, a plain loop and its other implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marks import on_accelerators
from parity.comparison import assert_equal_to_reference
from parity.ops import (
    CROPS,
    GRADIENTS,
    IMPLEMENTATIONS,
    compare_crop_gradients,
    compare_crops,
)
from regionclip_jax.ops.roi_align import roi_align


def axis_weights(low, high, num_bins, extent, scale, ratio, aligned):
    """Return weights [num_bins, extent] by a loop over bins and samples with bilinear weights."""
    low, high, scale = np.float32(low), np.float32(high), np.float32(scale)
    offset = np.float32(0.5 if aligned else 0.0)
    start = low * scale - offset
    size = high * scale - offset - start
    if not aligned:
        size = max(size, np.float32(1))
    length = size / np.float32(num_bins)
    count = ratio if ratio > 0 else max(int(np.ceil(length)), 0)
    weights = np.zeros((num_bins, extent))
    for bin_index in range(num_bins):
        for sample in range(count):
            at = start + np.float32(bin_index) * length
            at = at + np.float32(sample + 0.5) * length / np.float32(count)
            if at < -1 or at > extent:
                continue
            at = min(max(float(at), 0.0), extent - 1.0)
            cell = int(at)
            weights[bin_index, cell] += (1 - (at - cell)) / count
            if cell + 1 < extent:
                weights[bin_index, cell + 1] += (at - cell) / count
    return weights


def plain_roi_align(features, boxes, size, scale, ratio=0, aligned=True):
    """Return the output [B, R, P, Q, C] and its vector-Jacobian product for the features."""
    height, width = features.shape[1:3]
    rows = [
        [axis_weights(y1, y2, size[0], height, scale, ratio, aligned) for _, y1, _, y2 in image]
        for image in boxes
    ]
    columns = [
        [axis_weights(x1, x2, size[1], width, scale, ratio, aligned) for x1, _, x2, _ in image]
        for image in boxes
    ]
    rows, columns = np.array(rows), np.array(columns)
    out = np.einsum("brph,brqw,bhwc->brpqc", rows, columns, features, optimize=True)
    return out, lambda g: np.einsum("brph,brqw,brpqc->bhwc", rows, columns, g, optimize=True)


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stride,ratio,size,aligned", CROPS)
def test_crops_equal_the_references(implementation, stride, ratio, size, aligned):
    """53 boxes, 13 of them outside, degenerate or inverted. Measured: at most 3.1e-6."""
    assert_equal_to_reference(compare_crops(implementation, stride, ratio, size, aligned))


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("stride,ratio", GRADIENTS)
def test_gradients_equal_the_references(implementation, stride, ratio):
    """Measured: at most 4.4e-7."""
    assert_equal_to_reference(compare_crop_gradients(implementation, stride, ratio))


@on_accelerators
@pytest.mark.parametrize("height", [9, 40], ids=["small_map", "large_map"])
def test_the_implementation_of_auto_on_this_backend_equals_a_plain_loop(relative_error, height):
    """Compare crops and gradient on both sides of the size at which a CPU uses gathers."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((2, height, 30, 3)).astype(np.float32)
    boxes = rng.uniform(-40, 300, (2, 9, 4)).astype(np.float32)
    cotangent = rng.standard_normal((2, 9, 4, 3, 3)).astype(np.float32)

    @jax.jit
    def align(features, boxes, cotangent):
        crops, pull = jax.vjp(lambda f: roi_align(f, boxes, (4, 3), 1 / 8), features)
        return crops, pull(cotangent)[0]

    expected, pull = plain_roi_align(features, boxes, (4, 3), 1 / 8)
    crops, gradient = align(features, boxes, cotangent)
    assert relative_error(crops, expected) < 1e-5
    assert relative_error(gradient, pull(cotangent)) < 1e-5


@pytest.mark.parametrize("known_at_compile_time", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_of_exact_multiples_get_the_exact_number_of_samples(
    relative_error, implementation, known_at_compile_time
):
    """XLA would multiply by a rounded 1/P and count one sample too many, also for known boxes.

    Source: docs/reference/roi_align.md#trap-1-counts-under-jit.
    """
    features = np.random.default_rng(0).standard_normal((1, 3, 170, 2)).astype(np.float32)
    for num_bins, cells in ((7, (21, 42, 49, 77)), (14, (42, 84, 98, 154))):
        boxes = np.array([[[16 * 3, 0, 16 * (3 + n), 48] for n in cells]], np.float32)
        expected, _ = plain_roi_align(features, boxes, (num_bins, num_bins), 1 / 16)

        def align(features, boxes, num_bins=num_bins):
            return roi_align(features, boxes, num_bins, 1 / 16, implementation=implementation)

        if known_at_compile_time:
            crops = jax.jit(lambda f, b=boxes, a=align: a(f, jnp.asarray(b)))(features)
        else:
            crops = jax.jit(align)(features, boxes)
        assert relative_error(crops, expected) < 1e-5


@pytest.mark.parametrize("known_at_compile_time", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_sample_on_the_edge_of_the_map_is_kept(
    relative_error, implementation, known_at_compile_time
):
    """Bins of 3 cells from -0.5: the last sample is at exactly 20 = the map's length, inside.

    Other sizes have bins that are no whole cells. Source:
    docs/reference/roi_align.md#trap-2-positions-under-jit.
    """
    features = np.random.default_rng(1).standard_normal((1, 20, 20, 2)).astype(np.float32)
    sizes = np.arange(330, 352, dtype=np.float32)
    boxes = np.stack([0 * sizes, 0 * sizes, sizes, sizes], -1)[None]
    expected, _ = plain_roi_align(features, boxes, (7, 7), 1 / 16)

    def align(features, boxes):
        return roi_align(features, boxes, 7, 1 / 16, implementation=implementation)

    if known_at_compile_time:
        crops = jax.jit(lambda features: align(features, jnp.asarray(boxes)))(features)
    else:
        crops = jax.jit(align)(features, boxes)
    assert relative_error(crops, expected) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_boxes_far_outside_the_map_have_all_their_samples(relative_error, implementation):
    """More samples a bin than the map has cells.

    Source: docs/reference/roi_align.md#trap-3-static-bound.
    """
    features = np.random.default_rng(2).standard_normal((1, 8, 9, 2)).astype(np.float32)
    boxes = np.array([[[-1500, -700, 2100, 900], [-3, -4000, 90, 4011]]], np.float32)
    expected, _ = plain_roi_align(features, boxes, (7, 7), 1 / 16)
    crops = jax.jit(lambda f, b: roi_align(f, b, 7, 1 / 16, implementation=implementation))(
        features, boxes
    )
    assert relative_error(crops, expected) < 1e-5


def _both_implementations(aligned, ratio):
    def one(implementation):
        def align(features, boxes, cotangent):
            crops, pull = jax.vjp(
                lambda f: roi_align(
                    f, boxes, (4, 3), 1 / 8,
                    sampling_ratio=ratio, aligned=aligned, implementation=implementation,
                ),
                features,
            )  # fmt: skip
            return crops, pull(cotangent)[0]

        return jax.jit(align)

    return {name: one(name) for name in IMPLEMENTATIONS}


ALIGNERS = {(a, r): _both_implementations(a, r) for a in (True, False) for r in (0, 2)}
SPECIAL_BOXES = np.array(
    [
        [40, 30, 40, 60],  # no width
        [70, 50, 20, 10],  # inverted
        [300, 20, 390, 70],  # right of the map
        [-90, -80, -10, -15],  # above and left of it
        [0, 0, 88, 72],  # the whole map
        [-41, -37, 131, 113],  # more than the map
    ],
    np.float32,
)


@pytest.mark.property
@pytest.mark.parametrize("aligned,ratio", ALIGNERS)
@given(seed=st.integers(0, 2**32 - 1))
def test_matrices_and_gathers_equal_a_plain_loop_for_any_boxes(
    relative_error, aligned, ratio, seed
):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, 9, 11, 3)).astype(np.float32)
    # The corners are in any order, inside and outside the 88 x 72 pixels.
    random_boxes = rng.uniform(-30, 120, (2, 5, 4)).astype(np.float32)
    special = np.broadcast_to(SPECIAL_BOXES, (2, *SPECIAL_BOXES.shape))
    boxes = np.concatenate([random_boxes, special], 1)
    cotangent = rng.standard_normal((2, 11, 4, 3, 3)).astype(np.float32)
    expected, pull = plain_roi_align(features, boxes, (4, 3), 1 / 8, ratio, aligned)
    for align in ALIGNERS[aligned, ratio].values():
        crops, gradient = align(features, boxes, cotangent)
        assert relative_error(crops, expected) < 1e-5
        assert relative_error(gradient, pull(cotangent)) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_boxes_give_zeros_and_boxes_have_no_gradient(implementation):
    features = jnp.ones((1, 6, 6, 2))
    boxes = jnp.asarray(SPECIAL_BOXES[None, :5])

    def total(features, boxes):
        return roi_align(features, boxes, 2, 1 / 8, implementation=implementation).sum((0, 2, 3, 4))

    sums = total(features, boxes)
    np.testing.assert_array_equal(sums[:4], 0)
    assert sums[4] > 0
    gradient = jax.grad(lambda b: total(features, b).sum())(boxes)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bf16_features_give_bf16_crops_close_to_fp32(relative_error, implementation):
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.standard_normal((1, 12, 12, 4)), jnp.bfloat16)
    boxes = jnp.asarray([[[5.0, 9.0, 150.0, 120.0]]])
    crops = roi_align(features, boxes, 7, 1 / 16, implementation=implementation)
    expected, _ = plain_roi_align(np.asarray(features, np.float32), boxes, (7, 7), 1 / 16)
    assert crops.dtype == jnp.bfloat16
    assert relative_error(np.asarray(crops, np.float32), expected) < 2e-2


@pytest.mark.parametrize("implementation", ["matmul", "matmul_rows"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_no_loop_of_the_matrix_implementations_depends_on_the_boxes(implementation, ratio):
    """A GPU's host would wait after each iteration of such a loop."""

    def align(features, boxes):
        return roi_align(
            features, boxes, 7, 1 / 16, sampling_ratio=ratio, implementation=implementation
        )

    traced = jax.make_jaxpr(align)(jnp.ones((1, 9, 9, 2)), jnp.ones((1, 3, 4)))
    assert "while" not in str(traced) and "dot_general" in str(traced)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'scatter'; expected one of .*'gather', 'auto'"):
        roi_align(jnp.ones((1, 4, 4, 1)), jnp.ones((1, 1, 4)), 2, 1.0, implementation="scatter")


@pytest.mark.property
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_samples_are_limited_to_the_extent_of_each_image(implementation, relative_error):
    """Compare the crops and the gradient with those of a cropped map."""
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.standard_normal((2, 9, 11, 3)), jnp.float32)
    low = rng.uniform(-20, 150, (2, 12, 2))
    boxes = jnp.asarray(np.concatenate([low, low + rng.uniform(0, 90, low.shape)], -1), jnp.float32)
    extents = jnp.array([[7, 10], [5, 4]])

    def crop(features, boxes, extents):
        return roi_align(
            features, boxes, (4, 3), 1 / 16, extents=extents, implementation=implementation
        )

    def gradient(features, boxes, extents):
        weights = jnp.cos(jnp.arange(12 * 4 * 3 * 3.0)).reshape(1, 12, 4, 3, 3)
        return jax.grad(lambda f: (crop(f, boxes, extents) * weights).sum())(features)

    for image, (height, width) in enumerate(extents.tolist()):
        one = slice(image, image + 1)
        cut = features[one, :height, :width]
        expected = crop(cut, boxes[one], None)
        assert relative_error(crop(features, boxes, extents)[one], expected) < 1e-6
        actual = gradient(features[one], boxes[one], extents[one])
        expected = gradient(cut, boxes[one], None)
        assert relative_error(actual[:, :height, :width], expected) < 1e-6
        assert not actual[:, height:].any() and not actual[:, :, width:].any()
