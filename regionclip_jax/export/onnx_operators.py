"""Conversions of primitives that jax2onnx 0.13 does not know."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from regionclip_jax.export.convertible import KEEP_BOXES, WHERE


def register_operators() -> None:
    """Add the conversions to jax2onnx."""
    plugins = importlib.import_module("jax2onnx.plugins.plugin_system")
    onnx_ir = importlib.import_module("onnx_ir")
    plugins.import_all_plugins()
    for name, lower in _CONVERSIONS.items():
        if name not in plugins.PLUGIN_REGISTRY:
            _register(plugins, onnx_ir, name, lower)


def _register(plugins: ModuleType, onnx_ir: ModuleType, name: str, lower: Any) -> None:
    class Conversion(plugins.PrimitiveLeafPlugin):
        def lower(self, ctx: Any, eqn: Any) -> None:
            inputs = [
                ctx.get_value_for_var(variable, name_hint=ctx.fresh_name(f"{name}_in"))
                for variable in eqn.invars
            ]
            result = lower(_Graph(ctx, onnx_ir), inputs, eqn)
            ctx.bind_value_for_var(eqn.outvars[0], result)

    plugins.register_primitive(
        jaxpr_primitive=name, jax_doc="", onnx=[], since="0", context="primitives.lax",
        component=name, testcases=[],
    )(Conversion)  # fmt: skip


class _Graph:
    """Adds operators and constants, with the types and shapes that jax2onnx wants."""

    def __init__(self, ctx: Any, onnx_ir: ModuleType):
        self._ctx, self._ir = ctx, onnx_ir

    def add(self, operator: str, *inputs: Any, like: Any, shape: list, **attributes: Any) -> Any:
        """Add an operator with one result, of the type of ``like``."""
        method = getattr(self._ctx.builder, operator)
        result = method(*inputs, _outputs=[self._ctx.fresh_name(operator.lower())], **attributes)
        result.type, result.shape = like.type, self._ir.Shape(shape)
        return result

    def constant(self, values: Any) -> Any:
        return self._ctx.bind_const_for_var(object(), np.asarray(values))


def _stack(graph: _Graph, inputs: list, eqn: Any) -> Any:
    axis, shape = eqn.params["axis"], list(eqn.outvars[0].aval.shape)
    axes, part = graph.constant([axis]), [*shape[:axis], 1, *shape[axis + 1 :]]
    parts = [graph.add("Unsqueeze", x, axes, like=x, shape=part) for x in inputs]
    return graph.add("Concat", *parts, like=inputs[0], shape=shape, axis=axis)


def _keep_boxes(graph: _Graph, inputs: list, eqn: Any) -> Any:
    """Suppress, then set the cells of the kept boxes in a mask of zeros."""
    boxes, scores, threshold = inputs
    num_classes, num_boxes = shape = list(eqn.outvars[0].aval.shape)
    first, second, end = (graph.constant([number]) for number in (0, 1, 3))
    no, sides = graph.constant(np.zeros([], bool)), graph.constant(shape)
    nothing = graph.add("Expand", no, sides, like=no, shape=shape)
    # Rows of image, class and box.
    selected = graph.add(
        "NonMaxSuppression",
        graph.add("Unsqueeze", boxes, first, like=boxes, shape=[1, num_boxes, 4]),
        graph.add("Unsqueeze", scores, first, like=scores, shape=[1, num_classes, num_boxes]),
        graph.constant([eqn.params["most"]]),
        graph.add("Unsqueeze", threshold, first, like=threshold, shape=[1]),
        graph.constant(np.array([-np.inf], np.float32)),
        like=first,
        shape=[None, 3],
    )
    cells = graph.add("Slice", selected, second, end, second, like=first, shape=[None, 2])
    image = graph.add("Slice", selected, first, second, second, like=first, shape=[None, 1])
    image = graph.add("Squeeze", image, second, like=first, shape=[None])
    # As many values True as cells.
    found = graph.add("Equal", image, first, like=nothing, shape=[None])
    return graph.add("ScatterND", nothing, cells, found, like=nothing, shape=shape)


def _where(graph: _Graph, inputs: list, eqn: Any) -> Any:
    return graph.add("Where", *inputs, like=inputs[1], shape=list(eqn.outvars[0].aval.shape))


_CONVERSIONS = {"stack": _stack, KEEP_BOXES.name: _keep_boxes, WHERE.name: _where}
