"""Metrics of many steps, averaged on the device and fetched once.

A step returns a dict; each value is a scalar or a pair (sum, count). Both become a
``clu.metrics.Average``. (``clu.metrics.Std`` fails with current JAX and is not used anywhere.)
"""

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

StepMetrics = dict[str, jax.Array | tuple[jax.Array, jax.Array]]


class MetricAccumulator:
    """Average of step metrics between two log points; ``add`` never waits for the device."""

    def __init__(self):
        self._averages: dict[str, clu_metrics.Average] | None = None

    def add(self, metrics: StepMetrics) -> None:
        """Add the metrics of one step.

        Raises:
            ValueError: the names differ from those of the previous steps.
        """
        if self._averages is None:
            self._averages = _averages(metrics)
            return
        if set(metrics) != set(self._averages):
            difference = sorted(set(metrics) ^ set(self._averages))
            raise ValueError(
                f"metrics: every step must return the same names; {difference} are not in all of "
                "them. Return (0, 0) from a step that has nothing to count."
            )
        self._averages = _merged(self._averages, metrics)

    def compute(self) -> dict[str, float]:
        """Fetch the averages since the last call, and reset them.

        A metric with a total count of zero was never observed and is omitted. Names are sorted.
        """
        if self._averages is None:
            return {}
        fetched = jax.device_get(self._averages)
        self._averages = None
        return {
            name: float(average.total) / float(average.count)
            for name, average in fetched.items()
            if average.count != 0
        }


# Both jitted: one dispatch per step, and no constant from the host (transfer_guard permits it).
@jax.jit
def _averages(metrics: StepMetrics) -> dict[str, clu_metrics.Average]:
    def average(value):
        total, count = value if isinstance(value, tuple) else (value, 1)
        return clu_metrics.Average(
            total=jnp.asarray(total, jnp.float32), count=jnp.asarray(count, jnp.float32)
        )

    return {name: average(value) for name, value in metrics.items()}


@jax.jit
def _merged(averages: dict[str, clu_metrics.Average], metrics: StepMetrics):
    new = _averages(metrics)
    return {name: averages[name].merge(new[name]) for name in averages}
