"""Training loop: a step over batches, with callables every N steps.

The loop never reads a number from the device. It limits the queue: after dispatching step t it
waits for the metrics of step t - 2, so that neither batches nor programs accumulate on a slow
device.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax

from regionclip_jax.training.stopping import Preempted, stop_requests

State = TypeVar("State")
Batch = TypeVar("Batch")
Metrics = dict[str, jax.Array | tuple[jax.Array, jax.Array]]
# hook(step, state, metrics): number of updates done, state after them, and metrics of the last one.
# A hook must not keep `state`: the next step may donate its buffers.
Hook = Callable[[int, State, Metrics], object]

_STEPS_IN_FLIGHT = 2


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
        num_steps: updates done at the end, counted from the beginning of the run.
        hooks: pairs (every, hook), called in order when ``step % every == 0`` and after the last
            step.
        on_preempt: called like a hook after SIGTERM or Ctrl-C, instead of further steps; it must
            return only when its save is on disk. Signals are caught from the end of the first step:
            before, while its program is compiled, there is nothing to save.

    Returns:
        The state after ``num_steps`` updates.

    Raises:
        Preempted: after SIGTERM or Ctrl-C, when the step in progress and ``on_preempt`` are done.
            Also after the last step, because nothing else must start.
        ValueError: a hook period below 1, or the data end early.
    """
    for every, hook in hooks:
        if every < 1:
            raise ValueError(f"loop: period of {hook} must be >= 1 steps, found {every}")
    in_flight = collections.deque()
    iterator = iter(batches)
    with contextlib.ExitStack() as stack:
        for step in range(start_step + 1, num_steps + 1):
            try:
                batch = next(iterator)
            except StopIteration:
                raise ValueError(
                    f"loop: the data ended after {step - 1} of {num_steps} steps; repeat the data "
                    "set (num_epochs=None) or train for fewer steps"
                ) from None
            state, metrics = step_fn(state, batch)
            if step == start_step + 1:
                stop_signal = stack.enter_context(stop_requests())
            in_flight.append(metrics)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            for every, hook in hooks:
                if step % every == 0 or step == num_steps:
                    hook(step, state, metrics)
            if (number := stop_signal(step)) is not None:
                if on_preempt is not None:
                    on_preempt(step, state, metrics)
                raise Preempted(step, number)
    return state
