"""Which axis of a parameter is split over which axis of the mesh: rules on paths, first match wins.

Each large tensor is split along its output channels over the ``fsdp`` axis, small ones are kept
whole; with an axis of one device everything is whole. They change no number but by rounding (tests
compare steps on split states with steps on whole ones).
"""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regionclip_jax.sharding.mesh import FSDP_AXIS

_LAST = PartitionSpec(None, FSDP_AXIS)
# (pattern found anywhere in a path, spec). A momentum has the path of its parameter at its end.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # One vector or number a module: batch norm, layer norm, biases, the logit scale.
    (r"(^|/)(scale|bias|mean|var|logit_scale|class_embedding)$", PartitionSpec()),
    (r"/token_embedding$", PartitionSpec(FSDP_AXIS, None)),
    # Embeddings of a concept pool or of classes: every region asks for all of them.
    (r"_(concepts|embeddings)$", PartitionSpec()),
    # A detector's heads: the four numbers of a box, the one of a cell.
    (r"(^|/)(box_head/deltas|mask_head/predictor)/kernel$", PartitionSpec()),
    (r"/(positional_embedding|projection)$", _LAST),
    # Linear maps [in, out]; convolutions [k, k, in, out], patches among them.
    (r"_proj/kernel$|/c_fc/kernel$", _LAST),
    (r"/kernel$", PartitionSpec(None, None, None, FSDP_AXIS)),
    # What an optimizer counts.
    (r"(^|/)(count|step)$", PartitionSpec()),
)


def parameter_shardings(tree, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] = RULES):
    """A ``NamedSharding`` for every leaf of a tree of parameters, states or shapes.

    A dimension that the mesh's axis does not divide stays whole.

    Raises:
        ValueError: naming the paths that no rule matches, or whose rank the rule does not fit.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    shardings, problems = [], []
    for key_path, leaf in leaves:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        spec = next((rule for pattern, rule in rules if re.search(pattern, path)), None)
        if spec is None or len(spec) > len(leaf.shape):
            problems.append(f"{path} {leaf.shape}: " + ("no rule" if spec is None else str(spec)))
            continue
        kept = [
            axis if _divides(mesh, axis, side) else None
            for axis, side in zip(spec, leaf.shape, strict=False)
        ]
        shardings.append(NamedSharding(mesh, PartitionSpec(*kept)))
    if problems:
        raise ValueError(
            f"{len(problems)} tensors without a fitting rule, such as {problems[:5]}; add a rule "
            "to sharding/partition_rules.py"
        )
    return jax.tree_util.tree_unflatten(treedef, shardings)


def _divides(mesh: Mesh, axis: str | None, side: int) -> bool:
    return axis is None or side % mesh.shape[axis] == 0
