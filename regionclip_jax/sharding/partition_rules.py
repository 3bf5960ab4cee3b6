"""Which axis of a parameter is split over which axis of the mesh: rules on paths, first match wins.

Every job replicates its state today (one ``data`` axis, see ``mesh``). The rules serve models and
optimizer states that do not fit one device: on a mesh with an ``fsdp`` axis each large tensor is
split along its output channels, small ones are kept whole. They change no number (tests compare a
step on a split state with one on a whole state).
"""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FSDP_AXIS = "fsdp"
_LAST = PartitionSpec(None, FSDP_AXIS)
# (pattern found anywhere in a path, spec). A momentum has the path of its parameter at its end.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # One vector or number a module: batch norm, layer norm, biases, the logit scale.
    (r"(^|/)(scale|bias|mean|var|logit_scale|class_embedding)$", PartitionSpec()),
    (r"/token_embedding$", PartitionSpec(FSDP_AXIS, None)),
    (r"/(positional_embedding|projection)$", _LAST),
    # Linear maps [in, out]; convolutions [k, k, in, out], patches among them.
    (r"_proj/kernel$|/c_fc/kernel$", _LAST),
    (r"/kernel$", PartitionSpec(None, None, None, FSDP_AXIS)),
    # What an optimizer counts.
    (r"(^|/)(count|step)$", PartitionSpec()),
)


def parameter_shardings(tree, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] = RULES):
    """A ``NamedSharding`` for every leaf of a tree of parameters, states or shapes.

    A dimension that the mesh's axis does not divide stays whole, and so does everything on a mesh
    without an ``fsdp`` axis.

    Raises:
        ValueError: naming the paths that no rule matches, or whose rank the rule does not fit.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    shardings, problems = [], []
    for key_path, leaf in leaves:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
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
    return axis is None or (axis in mesh.shape and side % mesh.shape[axis] == 0)
