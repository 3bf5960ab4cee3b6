"""Traced programs of one image in operations that jax2onnx converts and onnxruntime runs.

jax2onnx 0.13 does not convert the loops of ``ops.nms``. ONNX has an operator for suppression. Here
calls of ``ops.nms`` become a primitive with the meaning of that operator, ``KEEP_BOXES``, and TopK.
Other operations get an equivalent form; the comments state why. ``export.onnx_operators`` converts
the two primitives.
"""

import functools
from collections.abc import Sequence

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, primitives
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.boxes import valid_boxes

# (boxes [N, 4], scores [C, N], IoU threshold; most) -> mask [C, N] of the boxes of each class that
# greedy suppression keeps, at most ``most`` of a class. A score of -inf is no box.
KEEP_BOXES = jax.extend.core.Primitive("keep_boxes")
KEEP_BOXES.def_abstract_eval(
    lambda boxes, scores, threshold, *, most: ShapedArray(scores.shape, np.dtype(bool))
)
# ``jnp.where`` of shapes that differ. jax2onnx stores a number that was broadcast to the shape of a
# map as a map.
WHERE = jax.extend.core.Primitive("where_of_shapes")
WHERE.def_abstract_eval(
    lambda *inputs: ShapedArray(jnp.broadcast_shapes(*(x.shape for x in inputs)), inputs[1].dtype)
)


def convertible(program: ClosedJaxpr) -> ClosedJaxpr:
    """Return a program of one image that computes the same.

    Raises:
        ValueError: groups of boxes depend on an input.
        TypeError: the program suppresses boxes of several images.
    """
    return jax.make_jaxpr(functools.partial(_evaluate, program))(*program.in_avals)


def _evaluate(program: ClosedJaxpr, *inputs) -> list:
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: JaxprEqn, inputs: list) -> Sequence:
    """Return the outputs of an equation, in another form if there is one."""
    primitive, parameters = equation.primitive, equation.params
    results = [_shaped(variable) for variable in equation.outvars]
    # A single number that depends on no input of the program.
    known = not any(isinstance(x, Tracer) for x in inputs) and not any(x.ndim for x in results)
    if primitive is primitives.jit_p:
        form = None if known else _CALLS.get(parameters["name"])
        if form is None:
            return _evaluate(parameters["jaxpr"], *inputs)
        outputs = form(*inputs, results=results)
        return [x.reshape(one.shape) for x, one in zip(outputs, results, strict=True)]
    if "call_jaxpr" in parameters:  # A function with a derivative of its own.
        return _evaluate(parameters["call_jaxpr"], *inputs)
    if primitive is primitives.remat_p:
        return _evaluate(ClosedJaxpr(parameters["jaxpr"], ()), *inputs)
    if known:
        # No operator is needed. BitCast, for one, begins with opset 26.
        with jax.ensure_compile_time_eval():
            outputs = primitive.bind(*inputs, **parameters)
    else:
        outputs = _FORMS.get(primitive, primitive.bind)(*inputs, **parameters)
    return outputs if primitive.multiple_results else [outputs]


def _shaped(variable: Var) -> ShapedArray:
    shaped = variable.aval
    assert isinstance(shaped, ShapedArray)
    return shaped


def _sorted_nms(
    boxes: Float[Array, "*B N 4"],
    scores: Float[Array, "*B N"],
    groups: Int[np.ndarray, " N"],
    mask: Bool[Array, "*B N"],
    iou_threshold: Float[Array, ""],
    *,
    results: list[ShapedArray],
) -> tuple[Int[Array, " K"], Bool[Array, " K"]]:
    """As ``ops.nms.nms_by_group``. A group is a class of the operator."""
    if isinstance(groups, Tracer):
        raise ValueError("groups of boxes that depend on an input cannot be classes of an operator")
    own = np.asarray(groups) == np.unique(groups)[:, None]
    most = results[0].shape[-1]
    scores = _choose(_last(mask, 1), _last(scores, 1), -jnp.inf)
    kept = _keep(boxes, _choose(own, scores, -jnp.inf), iou_threshold, most)
    _, best, real = _best(scores, kept.any(0), most)
    return best, real


def _nms_per_class(
    boxes: Float[Array, "*B R 4"],
    scores: Float[Array, "*B R C"],
    mask: Bool[Array, "*B R"],
    least_score: Float[Array, ""],
    iou_threshold: Float[Array, ""],
    *,
    results: list[ShapedArray],
) -> tuple[Int[Array, " K"], Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """As ``ops.nms.nms_per_class``."""
    most, scores = results[0].shape[-1], _last(scores, 2)
    num_classes = scores.shape[1]
    scores = _choose(_last(mask, 1)[:, None] & (scores > least_score), scores, -jnp.inf)
    kept = _keep(boxes, scores.T, iou_threshold, most).T
    best_scores, best, real = _best(scores.reshape(-1), kept.reshape(-1), most)
    return best // num_classes, best % num_classes, best_scores, real


def _where(condition, x, y, *, results: list[ShapedArray]) -> tuple[Array]:
    """As ``jnp.where``, which converts its inputs to one type."""
    dtype = results[0].dtype
    condition = jnp.asarray(condition, bool)
    return (WHERE.bind(condition, jnp.asarray(x, dtype), jnp.asarray(y, dtype)),)


# Jitted functions that get another form, by name: those of ``ops.nms`` with loops, and jnp.where.
_CALLS = {"_sorted_nms": _sorted_nms, "_nms_per_class": _nms_per_class, "_where": _where}


def _keep(boxes, scores: Float[Array, "C N"], iou_threshold, most: int) -> Bool[Array, "C N"]:
    boxes = _last(boxes, 2)
    # The operator may turn an inverted box around. In ``ops.nms`` it intersects nothing.
    boxes = _choose(valid_boxes(boxes)[:, None], boxes, 0.0)
    return KEEP_BOXES.bind(boxes, scores, jnp.asarray(iou_threshold, jnp.float32), most=most)


def _best(
    scores: Float[Array, " N"], kept: Bool[Array, " N"], most: int
) -> tuple[Float[Array, " K"], Int[Array, " K"], Bool[Array, " K"]]:
    """Return scores, indices and mask of the best kept ones; ties by lower index."""
    found, best = jax.lax.top_k(_choose(kept, scores, -jnp.inf), min(most, len(scores)))
    padding = (0, most - len(best))
    found, best = jnp.pad(found, padding, constant_values=-jnp.inf), jnp.pad(best, padding)
    real = found > -jnp.inf
    return _choose(real, found, 0), _choose(real, best, 0), real


def _choose(condition: Array, x: Array, other: float) -> Array:
    """As ``jnp.where`` with one number for the other cases."""
    return WHERE.bind(jnp.asarray(condition), x, jnp.asarray(other, x.dtype))


def _last(x: Array, rank: int) -> Array:
    """Return the array of one image, without the axis of images if it has one."""
    return x.reshape(x.shape[x.ndim - rank :])


def _gather(operand, indices, *, dimension_numbers, slice_sizes, mode, fill_value, **_) -> Array:
    """Gather with indices of the batched axes too: jax2onnx converts no batched axes."""
    numbers, axes = dimension_numbers, dimension_numbers.operand_batching_dims
    return jax.lax.gather(
        operand,
        _with_positions(indices, numbers.start_indices_batching_dims),
        jax.lax.GatherDimensionNumbers(
            offset_dims=numbers.offset_dims,
            collapsed_slice_dims=tuple(sorted((*numbers.collapsed_slice_dims, *axes))),
            start_index_map=(*numbers.start_index_map, *axes),
        ),
        slice_sizes,
        mode=mode,
        fill_value=fill_value,
    )


def _scatter(operand, indices, updates, *, dimension_numbers, mode, **_) -> Array:
    """Scatter with indices of the batched axes too, as ``_gather``."""
    numbers, axes = dimension_numbers, dimension_numbers.operand_batching_dims
    return jax.lax.scatter(
        operand,
        _with_positions(indices, numbers.scatter_indices_batching_dims),
        updates,
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=numbers.update_window_dims,
            inserted_window_dims=tuple(sorted((*numbers.inserted_window_dims, *axes))),
            scatter_dims_to_operand_dims=(*numbers.scatter_dims_to_operand_dims, *axes),
        ),
        mode=mode,
    )


def _with_positions(indices: Int[Array, "*B K"], axes: Sequence[int]) -> Int[Array, "*B M"]:
    """Return indices, followed by the position of each along some axes."""
    shape = (*indices.shape[:-1], 1)
    positions = [jax.lax.broadcasted_iota(indices.dtype, shape, axis) for axis in axes]
    return jnp.concatenate([indices, *positions], axis=-1)


def _scan(*inputs, jaxpr: ClosedJaxpr, **parameters) -> list:
    return primitives.scan_p.bind(*inputs, jaxpr=convertible(jaxpr), **parameters)


def _divide(x: Array, divisor: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.integer):
        # jax2onnx converts a sum that is divided by 2 to Mean, which has no integers.
        x = jax.lax.optimization_barrier(x)
    return jax.lax.div(x, divisor)


def _max_pool(x: Array, **axes: tuple) -> Array:
    """Pool without the axis of images: MaxPool of onnxruntime has at most three."""
    if len(x) > 1:
        return primitives.reduce_window_max_p.bind(x, **axes)
    of_image = {name: numbers[1:] for name, numbers in axes.items()}
    return primitives.reduce_window_max_p.bind(x[0], **of_image)[None]


def _reduce_precision(x: Float[Array, "..."], *, exponent_bits: int, mantissa_bits: int) -> Array:
    """Round to fewer bits with two differences; ties may go the other way.

    jax2onnx takes a logarithm, whose rounding may change the exponent. Source: Dekker, "A
    floating-point technique for extending the available precision" (1971).
    """
    if exponent_bits != 8 or x.dtype != jnp.float32:
        raise ValueError(f"reduce_precision of {x.dtype} to {exponent_bits} bits of exponent")
    product = x * (2.0 ** (23 - mantissa_bits) + 1)
    return product - (product - x)


_FORMS = {
    primitives.div_p: _divide,
    primitives.gather_p: _gather,
    primitives.reduce_precision_p: _reduce_precision,
    primitives.reduce_window_max_p: _max_pool,
    primitives.scan_p: _scan,
    primitives.scatter_p: _scatter,
}
