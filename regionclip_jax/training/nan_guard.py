"""Stop a run, and above all prevent a save, when a number is not finite.

``optax.apply_if_finite`` skips such updates and trains on, which hides the cause.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from regionclip_jax.settings import UserError
from regionclip_jax.training.loop import Hook


class NonFiniteMetric(UserError):
    """A metric or a tensor of the state is NaN or infinite."""

    def __init__(self, name: str, value: float | None, step: int, last_good: Path | None):
        found = "" if value is None else f" is {value}"
        remedy = (
            f"the last good checkpoint is {last_good}; lower the learning rate or look at the "
            "batches since then, and start again from it"
            if last_good is not None
            else "no checkpoint was saved yet; lower the learning rate or lengthen the warm-up"
        )
        super().__init__(f"step {step}: {name}{found}, expected finite numbers; {remedy}")
        self.name, self.step, self.last_good = name, step, last_good


def require_finite(
    step: int, metrics: Mapping[str, float], *, last_good: Callable[[], Path | None]
) -> None:
    """Raise for the first metric (in the order given) that is not finite.

    Args:
        step: updates done.
        metrics: fetched metrics.
        last_good: returns the newest checkpoint, for the message. It may wait for a save, so it is
            called only then.

    Raises:
        NonFiniteMetric: names the metric, the step and the checkpoint.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteMetric(f"metric {name!r}", value, step, last_good())


def only_if_finite(save: Hook, last_good: Callable[[], Path | None]) -> Hook:
    """Return a checkpoint hook that saves only finite states.

    It checks the metrics of the step and every floating point tensor of the state: a step's loss
    does not depend on the step's own update. Each save waits for the device once.

    Args:
        save: hook that writes a checkpoint.
        last_good: returns the newest checkpoint.

    Returns:
        A hook that raises NonFiniteMetric instead of saving a non-finite state.
    """

    def hook(step, state, metrics):
        fetched = jax.device_get(metrics)
        values = {
            name: _value(entry) for name, entry in fetched.items() if not _is_unobserved(entry)
        }
        require_finite(step, values, last_good=last_good)
        flags = jax.device_get(_finite_leaves(state))
        for keys, finite in jax.tree_util.tree_leaves_with_path(flags):
            if not finite:
                name = jax.tree_util.keystr(keys, simple=True, separator="/")
                raise NonFiniteMetric(f"tensor {name!r}", None, step, last_good())
        return save(step, state, metrics)

    return hook


def _is_unobserved(entry) -> bool:
    return isinstance(entry, tuple) and float(entry[1]) == 0.0


def _value(entry) -> float:
    if isinstance(entry, tuple):
        return float(entry[0]) / float(entry[1])
    return float(entry)


@jax.jit
def _finite_leaves(state):
    def finite(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.all(jnp.isfinite(leaf))
        return jnp.asarray(True)

    return jax.tree.map(finite, state)
