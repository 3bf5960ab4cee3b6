import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.training import loop, metrics


@jax.jit
def step_fn(state, batch):
    state = state + batch
    return state, {"loss": state * 2, "hits": (state, jnp.float32(2))}


@pytest.fixture(autouse=True)
def default_ctrl_c():
    """Restore Ctrl-C, which tests in the background of a shell would ignore."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def ones():
    return itertools.repeat(np.float32(1))


def test_hooks_run_in_order_at_their_period_and_after_the_last_step():
    calls = []
    state = loop.run(
        step_fn,
        jnp.float32(0),
        ones(),
        start_step=0,
        num_steps=7,
        hooks=[
            (3, lambda step, state, metrics: calls.append(("a", step, float(state)))),
            (6, lambda step, state, metrics: calls.append(("b", step, float(metrics["loss"])))),
        ],
    )
    assert state == 7
    assert calls == [("a", 3, 3.0), ("a", 6, 6.0), ("b", 6, 12.0), ("a", 7, 7.0), ("b", 7, 14.0)]


def test_a_resumed_run_counts_from_its_start_step():
    steps = []
    loop.run(
        step_fn,
        jnp.float32(4),
        ones(),
        start_step=4,
        num_steps=6,
        hooks=[(1, lambda step, *_: steps.append(step))],
    )
    assert steps == [5, 6]


def test_a_finished_run_takes_no_batch():
    state = loop.run(step_fn, jnp.float32(6), iter(()), start_step=6, num_steps=6, hooks=[])
    assert state == 6


def test_data_that_end_early_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="ended after 2 of 5 steps; repeat"):
        loop.run(step_fn, jnp.float32(0), [1.0, 1.0], start_step=0, num_steps=5, hooks=[])


def test_sigterm_finishes_the_step_saves_once_and_stops():
    saved = []
    before = signal.getsignal(signal.SIGTERM)

    def kill_at_three(step, state, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.Preempted) as stop:
        loop.run(
            step_fn,
            jnp.float32(0),
            ones(),
            start_step=0,
            num_steps=100,
            hooks=[(1, kill_at_three)],
            on_preempt=lambda step, state, metrics: saved.append((step, float(state))),
        )
    assert stop.value.step == 3
    assert saved == [(3, 3.0)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_the_last_step_saves_it_and_stops_the_run():
    saved = []
    with pytest.raises(loop.Preempted, match="stopped by SIGTERM after step 1") as stop:
        loop.run(
            step_fn,
            jnp.float32(0),
            ones(),
            start_step=0,
            num_steps=1,
            hooks=[(1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))],
            on_preempt=lambda step, *_: saved.append(step),
        )
    assert saved == [1] and stop.value.number == signal.SIGTERM


def test_a_second_sigterm_does_not_interrupt_the_save_but_a_second_ctrl_c_does():
    def run(number, again):
        saved = []

        def save(step, *_):
            os.kill(os.getpid(), again)
            saved.append(step)

        stopped = pytest.raises((loop.Preempted, KeyboardInterrupt))
        with stopped as stop:
            loop.run(
                step_fn,
                jnp.float32(0),
                ones(),
                start_step=0,
                num_steps=9,
                hooks=[(2, lambda *_: os.kill(os.getpid(), number))],
                on_preempt=save,
            )
        return stop.type, saved

    assert run(signal.SIGTERM, signal.SIGTERM) == (loop.Preempted, [2])
    assert run(signal.SIGTERM, signal.SIGINT) == (loop.Preempted, [2])
    assert run(signal.SIGINT, signal.SIGTERM) == (loop.Preempted, [2])
    assert run(signal.SIGINT, signal.SIGINT) == (KeyboardInterrupt, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_before_the_end_of_the_first_step_has_its_default_effect():
    def slow_to_compile(state, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return step_fn(state, batch)

    with pytest.raises(KeyboardInterrupt):
        loop.run(slow_to_compile, jnp.float32(0), ones(), start_step=0, num_steps=9, hooks=[])


def test_a_period_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be >= 1"):
        loop.run(step_fn, 0.0, ones(), start_step=0, num_steps=1, hooks=[(0, print)])


def test_metrics_are_averaged_by_count_and_fetched_once():
    accumulator = metrics.MetricAccumulator()
    for loss, hits, count in [(1.0, 3.0, 4.0), (3.0, 0.0, 0.0), (5.0, 1.0, 1.0)]:
        with jax.transfer_guard("allow"):
            values = {
                "loss": jnp.float32(loss),
                "top1": (jnp.float32(hits), jnp.float32(count)),
                "never": (jnp.float32(0), jnp.float32(0)),
            }
        with jax.transfer_guard("disallow"):
            accumulator.add(values)
    assert accumulator.compute() == {"loss": 3.0, "top1": pytest.approx(0.8)}
    assert accumulator.compute() == {}


def test_metrics_that_change_their_names_are_refused():
    accumulator = metrics.MetricAccumulator()
    accumulator.add({"loss": jnp.float32(1)})
    with pytest.raises(ValueError, match=r"\['accuracy'\]"):
        accumulator.add({"loss": jnp.float32(1), "accuracy": jnp.float32(1)})
