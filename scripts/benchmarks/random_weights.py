"""Draw random weights by NumPy; JAX's own initializers compile for half a minute."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.artifacts.model_checkpoint import flatten, unflatten
from regionclip_jax.models.clip import SIGMOID_BIAS

_CONSTANTS = {
    "scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0,
    "logit_scale": math.log(100), "logit_bias": SIGMOID_BIAS,
}  # fmt: skip


def draw_weights(abstract: dict, seed: int = 0) -> dict:
    """Draw variables of the shapes ``abstract``, scaled to keep activations finite in bf16."""
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]):
        name = path.rpartition("/")[2]
        if name in _CONSTANTS:
            return np.full(shape, _CONSTANTS[name])
        fan_in = math.prod(shape[:-1]) if name == "kernel" else shape[-1]
        return rng.standard_normal(shape) * fan_in**-0.5

    leaves = {path: draw(path, leaf.shape) for path, leaf in flatten(abstract).items()}
    return unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()})


def in_type(variables: dict, dtype: jnp.dtype) -> dict:
    """Cast kernels and matrices of frozen variables to ``dtype``, as the jobs do."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, variables)
