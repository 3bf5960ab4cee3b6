import logging as python_logging

import pytest
from absl import logging

from regionclip_jax.reporting import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def run():
    clock, written = Clock(), []
    return (
        clock,
        written,
        progress.Progress(
            num_steps=100,
            images_per_step=8,
            fetch_metrics=lambda: {"loss": 1.23456},
            write_scalars=lambda step, scalars: written.append((step, scalars)),
            clock=clock,
        ),
    )


def test_the_rate_is_counted_from_the_first_step_without_pauses(run, caplog):
    clock, written, meter = run
    clock.now += 60  # compilation of the first step
    meter.started(1, None, None)
    meter.started(2, None, None)
    with meter.paused():
        clock.now += 1000  # an evaluation
    clock.now += 10
    logging.use_absl_handler()
    logger = python_logging.getLogger("absl")
    logger.addHandler(caplog.handler)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        meter.report(21, None, None)
    finally:
        logger.removeHandler(caplog.handler)
        logging.set_verbosity(verbosity)
    step, scalars = written[0]
    assert step == 21
    assert scalars == pytest.approx(
        {
            "loss": 1.23456,
            "progress/steps_per_second": 2.0,
            "progress/images_per_second": 16.0,
            "progress/data_wait": 0.0,
            "progress/seconds_left": 39.5,
        }
    )
    assert "step  21/100 ( 21%) | loss 1.235 | 16 images/s | data 0 ms | 40s left" in caplog.text


def test_each_rate_is_that_of_its_window(run):
    clock, written, meter = run
    meter.started(1, None, None)
    for step, seconds in [(11, 10), (21, 5)]:
        clock.now += seconds
        meter.report(step, None, None)
    rates = [scalars["progress/steps_per_second"] for _, scalars in written]
    assert rates == pytest.approx([1.0, 2.0])


def test_the_wait_for_data_counts_the_steps_since_the_last_report(run):
    clock, written, meter = run

    def slow():
        for seconds in (30, 0.5, 0.1, 2.0):
            clock.now += seconds
            yield seconds

    for step, _ in enumerate(meter.waiting(slow()), start=1):
        meter.started(step, None, None)
        clock.now += 5  # the step
        if step > 1:
            meter.report(step, None, None)
    waits = [scalars["progress/data_wait"] for _, scalars in written]
    assert waits == pytest.approx([0.5, 0.1, 2.0])


def test_a_report_at_the_first_step_has_no_rate(run):
    _, written, meter = run
    meter.started(1, None, None)
    meter.report(1, None, None)
    assert written == [(1, {"loss": 1.23456})]
