"""Learning rate schedules: pure functions from the number of updates done to a rate.

Source: docs/reference/pretraining.md#solver. An update uses ``schedule(t)``, where ``t`` is the
number of previous updates, so the first one uses ``schedule(0)``.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax


def warmup_multistep(
    peak: float,
    *,
    boundaries: Sequence[int],
    gamma: float,
    warmup_steps: int,
    warmup_factor: float,
) -> optax.Schedule:
    """Return a linear warm-up, then a rate that is multiplied by ``gamma`` at each boundary.

    The warm-up multiplier ``warmup_factor + (1 - warmup_factor) * t / warmup_steps`` reaches 1 at
    ``t = warmup_steps``. It multiplies the step function (a boundary inside the warm-up counts
    too), as in the reference, whose values are 1000, 0.001, (300000, 525000) and 0.1
    (docs/reference/pretraining.md#solver).

    Args:
        peak: rate after the warm-up.
        boundaries: increasing step numbers; a factor applies from its step on.
        gamma: factor per boundary.
        warmup_steps: length of the warm-up; 0 for none.
        warmup_factor: multiplier at step 0.

    Raises:
        ValueError: the boundaries do not increase, or ``warmup_steps`` is negative.
    """
    boundaries = tuple(boundaries)
    if list(boundaries) != sorted(set(boundaries)):
        raise ValueError(
            f"schedule: boundaries must increase strictly, found {boundaries}; sort them"
        )
    _require_warmup(warmup_steps)
    steps = optax.piecewise_constant_schedule(peak, {step: gamma for step in boundaries})
    if warmup_steps == 0:
        return steps

    def schedule(step):
        # optax.linear_schedule computes 1 - (1 - factor), which loses five digits in float32.
        progress = jnp.minimum(step / warmup_steps, 1.0)
        return (warmup_factor + (1.0 - warmup_factor) * progress) * steps(step)

    return schedule


def warmup_cosine(peak: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Return a linear warm-up to ``peak``, then half a cosine to 0 at ``total_steps``.

    The warm-up is ``peak * (t + 1) / warmup_steps``, so the first update has a rate above zero;
    that of ``optax.warmup_cosine_decay_schedule`` is one update behind.

    Raises:
        ValueError: the warm-up is not shorter than ``total_steps``.
    """
    _require_warmup(warmup_steps)
    if not warmup_steps < total_steps:
        raise ValueError(
            f"schedule: warm-up of {warmup_steps} steps must be shorter than the total of "
            f"{total_steps} steps; lower the one or raise the other"
        )

    def schedule(step):
        warm = peak * (step + 1) / max(warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        cosine = peak * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def _require_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"schedule: warmup_steps must be >= 0, found {warmup_steps}")
