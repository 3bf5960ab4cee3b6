"""State of training between two updates, and the split into trained and frozen parameters."""

import re
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int

Parameters = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """State of training: ``params`` are trained, ``frozen_params`` (the rest of the tree) constant.

    Gradients and optimizer state exist for ``params`` only, so frozen parameters cost no memory and
    no update can reach them. A checkpoint of the state is a whole model.
    """

    step: Int[Array, ""]
    params: Parameters
    frozen_params: Parameters
    batch_stats: Parameters
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Parameters]:
        """All variables of the model."""
        return model_variables(self.params, self.frozen_params, self.batch_stats)


def model_variables(params: Parameters, frozen_params: Parameters, batch_stats: Parameters) -> dict:
    """Merge trained and frozen parameters into one tree, with the batch statistics."""
    merged = flatten_dict(params) | flatten_dict(frozen_params)
    return {"params": unflatten_dict(merged), "batch_stats": batch_stats}


def split_parameters(
    params: Parameters, frozen_patterns: Sequence[str]
) -> tuple[Parameters, Parameters]:
    """Split a tree into its trained and its frozen part.

    Args:
        params: nested dict of arrays.
        frozen_patterns: regular expressions, searched in paths like
            ``visual/layer1/block0/conv1/kernel``.

    Raises:
        ValueError: a pattern matches no parameter, or all parameters are frozen.
    """
    flat = flatten_dict(params, sep="/")
    for pattern in frozen_patterns:
        if not any(re.search(pattern, path) for path in flat):
            raise ValueError(
                f"frozen pattern {pattern!r} matches none of the {len(flat)} parameters, e.g. "
                f"{next(iter(flat))!r}; correct it or take it out of the config"
            )
    frozen = {p for p in flat if any(re.search(pattern, p) for pattern in frozen_patterns)}
    if len(frozen) == len(flat):
        raise ValueError(f"frozen patterns {list(frozen_patterns)} leave nothing to train")
    trained = {path: value for path, value in flat.items() if path not in frozen}
    kept = {path: value for path, value in flat.items() if path in frozen}
    return unflatten_dict(trained, sep="/"), unflatten_dict(kept, sep="/")


def create_train_state(
    variables: dict, frozen_patterns: Sequence[str], optimizer: optax.GradientTransformation
) -> TrainState:
    """Create the state at step 0 from a model's variables."""
    params, frozen_params = split_parameters(variables["params"], frozen_patterns)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen_params=frozen_params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
    )


def apply_gradients(
    state: TrainState,
    gradients: Parameters,
    optimizer: optax.GradientTransformation,
    batch_stats: Parameters | None = None,
) -> TrainState:
    """Return the state after one update."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        batch_stats=state.batch_stats if batch_stats is None else batch_stats,
    )


def step_key(seed: int, step: Int[Array, ""]) -> jax.Array:
    """Return the random key of one step, from seed and step: resuming needs no stored key."""
    return jax.random.fold_in(jax.random.key(seed), step)
