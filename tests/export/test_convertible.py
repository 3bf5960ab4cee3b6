"""Programs in the operations that jax2onnx converts compute what they computed before."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.export.convertible import KEEP_BOXES, WHERE, convertible
from regionclip_jax.ops.boxes import exact_threshold
from regionclip_jax.ops.nms import nms_by_group, nms_per_class

NUM_BOXES, NUM_CLASSES = 40, 3
GROUPS = np.arange(NUM_BOXES, dtype=np.int32) % 3
THRESHOLD = 0.4


def keep(boxes, scores, threshold, *, most: int) -> np.ndarray:
    """Return the mask of the boxes that a plain loop keeps: the meaning of the operator."""
    boxes, scores, kept = np.asarray(boxes), np.asarray(scores), np.zeros(scores.shape, bool)
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    intersections = np.maximum(high - low, np.float32(0)).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    with np.errstate(invalid="ignore"):
        ious = intersections / (areas[:, None] + areas - intersections)
    for of_class, own in zip(scores, kept, strict=True):
        for box in np.argsort(-of_class, kind="stable"):
            exists = of_class[box] > -np.inf
            own[box] = exists and not (own & (ious[box] > threshold)).any() and own.sum() < most
    return kept


@pytest.fixture(autouse=True)
def values():
    """Let both primitives, which are only converted, compute values."""
    KEEP_BOXES.def_impl(keep)
    WHERE.def_impl(jnp.where)


def by_group(boxes, scores, mask, *, most: int):
    return nms_by_group(boxes, scores, GROUPS, mask, iou_threshold=THRESHOLD, max_outputs=most)


def per_class(boxes, scores, mask, *, most: int):
    return nms_per_class(
        boxes, scores, mask, score_threshold=-1.0, iou_threshold=THRESHOLD, max_outputs=most
    )


def shapes(*scores: int) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct((NUM_BOXES, 4), jnp.float32),
        jax.ShapeDtypeStruct((NUM_BOXES, *scores), jnp.float32),
        jax.ShapeDtypeStruct((NUM_BOXES,), jnp.bool_),
    ]


@functools.cache
def converted(function, *scores: int, most: int):
    program = jax.make_jaxpr(functools.partial(function, most=most))(*shapes(*scores))
    return convertible(program)


def names(program) -> set[str]:
    return {equation.primitive.name for equation in program.jaxpr.eqns}


def draw(seed: int, *scores: int) -> list[np.ndarray]:
    """Return boxes of a coarse grid, some empty or inverted, scores of few values, and a mask."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 12, (NUM_BOXES, 2)), rng.integers(-1, 9, (NUM_BOXES, 2))
    boxes = np.concatenate([corners, corners + sides], -1) / rng.choice([1, 3, 7])
    values = rng.integers(-12, 12, (NUM_BOXES, *scores)) / 8
    return [boxes.astype("f4"), values.astype("f4"), rng.random(NUM_BOXES) < 0.8]


@pytest.mark.property
@given(seed=st.integers(0, 10**6))
def test_suppression_by_the_operator_equals_ops_nms(seed):
    """Compare more outputs than boxes, and fewer than kept boxes."""
    for function, scores, most in ((by_group, (), 50), (per_class, (NUM_CLASSES,), 12)):
        inputs = [jnp.asarray(one) for one in draw(seed, *scores)]
        program = converted(function, *scores, most=most)
        assert KEEP_BOXES.name in names(program)
        found = jax.extend.core.jaxpr_as_fun(program)(*inputs)
        for one, expected in zip(found, function(*inputs, most=most), strict=True):
            np.testing.assert_array_equal(one, expected)


def test_no_loop_is_left_of_one_image():
    batch = [jax.ShapeDtypeStruct((1, *one.shape), one.dtype) for one in shapes(NUM_CLASSES)]
    suppress = jax.vmap(functools.partial(per_class, most=5))
    assert "while" not in names(convertible(jax.make_jaxpr(suppress)(*batch)))
    with pytest.raises(TypeError):
        batch = [jax.ShapeDtypeStruct((2, *one.shape[1:]), one.dtype) for one in batch]
        convertible(jax.make_jaxpr(suppress)(*batch))


def test_groups_of_an_input_are_refused():
    def suppress(boxes, scores, groups, mask):
        return nms_by_group(boxes, scores, groups, mask, iou_threshold=0.5, max_outputs=5)

    groups = jax.ShapeDtypeStruct((NUM_BOXES,), jnp.int32)
    boxes, scores, mask = shapes()
    with pytest.raises(ValueError, match="groups of boxes that depend on an input"):
        convertible(jax.make_jaxpr(suppress)(boxes, scores, groups, mask))


def batched_reads(x, index):
    return jax.vmap(lambda row, own: row[own])(x, index)


def batched_writes(x, index):
    return jax.vmap(lambda row, own: row.at[own].set(7.0))(x, index)


def reads_in_a_loop(x, index):
    return jax.lax.scan(lambda total, _: (total + batched_reads(x, index), None), 0.0 * x[:, :2],
                        length=3)[0]  # fmt: skip


def halves(x, index):
    return (index + x.astype(jnp.int32)[:, :2]) // 2


def mixed_shapes(x, index):
    return jnp.where(x[:, :1] > 0, x, 0), jnp.where(index, 2, x[:, :2])


def pooled(x, index):
    return jax.lax.reduce_window(x[None, :, :, None], -jnp.inf, jax.lax.max, (1, 2, 3, 1),
                                 (1, 1, 2, 1), "SAME")  # fmt: skip


@pytest.mark.parametrize(
    "function", [batched_reads, batched_writes, reads_in_a_loop, halves, mixed_shapes, pooled]
)
def test_other_forms_compute_the_same(function):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4, 9)) * 5).astype(np.float32)
    index = np.array([[2, 0], [8, 3], [1, 1], [4, 7]], np.int32)
    program = convertible(jax.make_jaxpr(function)(x, index))
    found = jax.extend.core.jaxpr_as_fun(program)(x, index)
    for one, expected in zip(found, jax.tree.leaves(function(x, index)), strict=True):
        np.testing.assert_array_equal(one, expected)
    for equation in program.jaxpr.eqns:
        numbers = equation.params.get("dimension_numbers")
        assert not getattr(numbers, "operand_batching_dims", ())


def test_numbers_are_not_broadcast_to_the_shape_of_a_map():
    x, index = np.zeros((4, 9), np.float32), np.zeros((4, 2), np.int32)
    program = convertible(jax.make_jaxpr(mixed_shapes)(x, index))
    assert WHERE.name in names(program) and "broadcast_in_dim" not in names(program)


def test_rounding_to_12_bits_leaves_12_bits_on_both_sides():
    x = np.random.default_rng(0).uniform(0.1, 1e5, 2000).astype(np.float32)
    round_to = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=11)
    program = convertible(jax.make_jaxpr(round_to)(x))
    assert "reduce_precision" not in names(program)
    (high,) = jax.extend.core.jaxpr_as_fun(program)(x)
    for part in (np.asarray(high), x - np.asarray(high)):
        assert not (part.view(np.int32) & 0xFFF).any()


def test_a_number_that_depends_on_no_input_is_computed():
    def bits(x):
        return x > jax.lax.bitcast_convert_type(jnp.asarray(exact_threshold(0.3)), jnp.int32)

    assert names(convertible(jax.make_jaxpr(bits)(np.int32([1])))) == {"gt"}
