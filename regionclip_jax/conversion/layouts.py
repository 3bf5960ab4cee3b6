"""Torch tensors to parameters and back: source tensor, layout, and checks of shape and type.

The map goes from our tree to the file: each leaf has one source tensor (its ``Origin``). So a
comparison of names finds both missing and unused tensors.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import numpy as np

from regionclip_jax.artifacts import model_checkpoint
from regionclip_jax.artifacts.model_card import CheckpointMismatch

# Names of a leaf in flax -> in torch.
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
DENSE = {"kernel": "weight", "bias": "bias"}


class Layout(Enum):
    """Conversion of a torch tensor's layout to flax's."""

    SAME = "as it is"
    LINEAR = "[out, in] -> [in, out]"
    CONVOLUTION = "OIHW -> HWIO"


class Origin(NamedTuple):
    """Source tensor of a parameter; ``third`` is 0, 1, 2 for q, k, v of a packed one, else None."""

    name: str
    layout: Layout
    third: int | None = None


def source_shape(shape: tuple[int, ...], where: Origin) -> tuple[int, ...]:
    """Return the required shape of the torch tensor for a parameter of ``shape``."""
    if where.layout is Layout.CONVOLUTION:
        shape = (shape[3], shape[2], shape[0], shape[1])
    elif where.layout is Layout.LINEAR:
        shape = shape[::-1]
    if where.third is not None:
        shape = (3 * shape[0], *shape[1:])
    return tuple(shape)


def to_parameter(tensor: np.ndarray, where: Origin) -> np.ndarray:
    """Convert a torch tensor to our layout, as contiguous fp32: exact for fp16, bf16 and fp32."""
    if where.third is not None:
        rows = tensor.shape[0] // 3
        tensor = tensor[where.third * rows : (where.third + 1) * rows]
    if where.layout is Layout.CONVOLUTION:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif where.layout is Layout.LINEAR:
        tensor = tensor.T
    return np.array(tensor, np.float32, order="C")


def to_tensor(parameter: np.ndarray, layout: Layout) -> np.ndarray:
    """Convert a parameter to torch's layout; a third of a packed tensor stays a third."""
    if layout is Layout.CONVOLUTION:
        return parameter.transpose(3, 2, 0, 1)
    return parameter.T if layout is Layout.LINEAR else parameter


def to_tensors(variables: dict, origin: Callable[[str, int], Origin]) -> dict[str, np.ndarray]:
    """Return the torch tensors by name of which ``build_variables`` makes these variables.

    Args:
        variables: ``{"params", "batch_stats"}`` of arrays.
        origin: as in ``build_variables``.
    """
    tensors: dict[str, np.ndarray] = {}
    thirds: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in model_checkpoint.flatten(variables).items():
        array = np.asarray(leaf)
        source = origin(path.partition("/")[2], array.ndim)
        tensor = to_tensor(array, source.layout)
        if source.third is None:
            tensors[source.name] = tensor
        else:
            thirds.setdefault(source.name, {})[source.third] = tensor
    for name, parts in thirds.items():
        tensors[name] = np.concatenate([parts[third] for third in range(3)])
    return tensors


def build_variables(
    expected: dict,
    origin: Callable[[str, int], Origin],
    tensors: dict[str, np.ndarray],
    *,
    where: str,
    remedy: str,
) -> tuple[dict, set[str]]:
    """Build variables of the shapes ``expected`` from the tensors that ``origin`` names.

    Args:
        expected: ``{"params", "batch_stats"}`` of shapes.
        origin: (path below its collection, number of dimensions) -> source tensor.
        tensors: by name.
        where: the file and its expected kind, for errors.
        remedy: advice in errors.

    Returns:
        ``{"params", "batch_stats"}`` of fp32 arrays, and the names that were used.

    Raises:
        CheckpointMismatch: a tensor is missing, not of floating point, or of another shape; the
            message names each of them, with both shapes.
    """
    leaves, used, problems = {}, set(), []
    for path, leaf in model_checkpoint.flatten(expected).items():
        _, _, below = path.partition("/")
        source = origin(below, len(leaf.shape))
        shape = source_shape(leaf.shape, source)
        if source.name not in tensors:
            problems.append(f"{source.name}: missing, expected shape {shape}")
            continue
        tensor = tensors[source.name]
        if tensor.shape != shape:
            problems.append(f"{source.name}: expected shape {shape}, found {tensor.shape}")
        elif tensor.dtype.kind not in "fV":
            problems.append(f"{source.name}: expected floating point, found {tensor.dtype}")
        else:
            leaves[path] = to_parameter(tensor, source)
            used.add(source.name)
    if problems:
        # A packed tensor is the source of three parameters, so its problem would occur three times.
        problems = list(dict.fromkeys(problems))
        raise CheckpointMismatch(
            f"{where}: {len(problems)} tensors do not fit:\n  "
            + "\n  ".join(model_checkpoint.summarise(problems))
            + f"\n{remedy}"
        )
    return model_checkpoint.unflatten(leaves), used
