"""The training loop: a step over batches, with plain callables every N steps.

The loop itself never reads a number from the device. It only keeps the queue short: after sending
off step t it waits for the metrics of step t - 2, so that on a slow device neither batches nor
programs pile up.
"""

import collections
import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

State = TypeVar("State")
Batch = TypeVar("Batch")
Metrics = dict[str, jax.Array | tuple[jax.Array, jax.Array]]
# hook(step, state, metrics): `step` updates are done, `state` is the result, `metrics` are those of
# the last update. A hook must not keep `state`: the next step may donate its buffers.
Hook = Callable[[int, State, Metrics], object]

_STEPS_IN_FLIGHT = 2


class Preempted(Exception):
    """The run was asked to stop (SIGTERM) and stopped cleanly after ``step`` updates."""

    def __init__(self, step: int):
        super().__init__(
            f"preempted after step {step}; start the same command again to continue from there"
        )
        self.step = step


def run(
    step_fn: Callable[[State, Batch], tuple[State, Metrics]],
    state: State,
    batches: Iterable[Batch],
    *,
    start_step: int,
    num_steps: int,
    hooks: Sequence[tuple[int, Hook]],
    on_preempt: Hook | None = None,
) -> State:
    """Train from ``start_step`` updates done to ``num_steps`` updates done.

    Args:
        step_fn: one update, usually jitted with a donated state.
        state: the state after ``start_step`` updates.
        batches: one per update, beginning with the batch of update ``start_step + 1``.
        start_step: updates done before.
        num_steps: updates done in the end, counted from the very beginning of the run.
        hooks: pairs (every, hook), called in their order when ``step % every == 0`` and after the
            last step.
        on_preempt: called once after SIGTERM, instead of further steps, like a hook; it saves.
            SIGTERM is watched in the main thread of one process; with several processes JAX's
            preemption service is asked instead, so that all stop after the same step.

    Returns:
        The state after ``num_steps`` updates.

    Raises:
        Preempted: after SIGTERM, when the step in progress and ``on_preempt`` are done.
        ValueError: for a hook period below 1 or when the data end early.
    """
    for every, hook in hooks:
        if every < 1:
            raise ValueError(f"loop: period of {hook} must be >= 1 steps, found {every}")
    in_flight = collections.deque()
    iterator = iter(batches)
    with _preemption_notice() as preempted:
        for step in range(start_step + 1, num_steps + 1):
            try:
                batch = next(iterator)
            except StopIteration:
                raise ValueError(
                    f"loop: the data ended after {step - 1} of {num_steps} steps; repeat the data "
                    "set (num_epochs=None) or train for fewer steps"
                ) from None
            state, metrics = step_fn(state, batch)
            in_flight.append(metrics)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            for every, hook in hooks:
                if step % every == 0 or step == num_steps:
                    hook(step, state, metrics)
            if preempted(step) and step < num_steps:
                if on_preempt is not None:
                    on_preempt(step, state, metrics)
                raise Preempted(step)
    return state


@contextlib.contextmanager
def _preemption_notice():
    """Yield a function of the step that says whether to stop after it."""
    if jax.process_count() > 1:
        # JAX's service catches SIGTERM in C++; a Python handler would take the signal away from it.
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python delivers signals to the main thread only
        return
    received = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
