"""Partition rules: regular expressions on parameter paths to specs; the first match wins.

Large tensors are sharded along their output channels over the ``fsdp`` axis; small ones are
replicated. Flax's logical axes would stand in every module, and not cover the optimizer's state.
With an axis of one device all are replicated. The rules change numbers only by rounding
(tests compare steps on sharded and replicated states).
"""

import re
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regionclip_jax.sharding.mesh import FSDP_AXIS

_LAST = PartitionSpec(None, FSDP_AXIS)


def _output_channels(rank: int) -> PartitionSpec:
    """Shard the last of two dimensions or more."""
    return PartitionSpec(*[None] * max(1, rank - 1), FSDP_AXIS)


# (pattern found anywhere in a path, spec or function of the rank). A momentum has the path of its
# parameter at its end.
RULES: tuple[tuple[str, PartitionSpec | Callable[[int], PartitionSpec]], ...] = (
    # One vector or number per module: batch norm, layer norm, biases, the logit scale.
    (r"(^|/)(scale|bias|mean|var|logit_scale|logit_bias|class_embedding|probe)$", PartitionSpec()),
    (r"/(background_embedding|logit_factor)$", PartitionSpec()),
    (r"/token_embedding$", PartitionSpec(FSDP_AXIS, None)),
    # Embeddings of a concept pool or of classes: every region needs all of them.
    (r"_(concepts|embeddings)$", PartitionSpec()),
    # A detector's heads have too few outputs to shard: four per box, one per cell.
    (r"(^|/)(box_head/deltas|region_head/deltas|mask_head/predictor)/kernel$", PartitionSpec()),
    (r"/(positional_embedding|projection)$", _LAST),
    # The 2,730 outputs of EVA-02-L's gates are seldom a multiple of the devices.
    (r"/mlp/(gate|value)/kernel$", PartitionSpec(FSDP_AXIS, None)),
    # Linear maps [in, out]; convolutions [k, k, in, out], patches among them.
    (r"/kernel$", _output_channels),
    # Counters of optimizers.
    (r"(^|/)(count|step)$", PartitionSpec()),
)


def parameter_shardings(tree, mesh: Mesh):
    """Return a ``NamedSharding`` for every leaf of a tree of parameters, states or shapes.

    A dimension that the mesh's axis does not divide is not sharded.

    Raises:
        ValueError: no rule matches a path, or its rank does not fit; the message names the paths.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    shardings, problems = [], []
    for key_path, leaf in leaves:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        spec = next((rule for pattern, rule in RULES if re.search(pattern, path)), None)
        if callable(spec):
            spec = spec(len(leaf.shape))
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
