import jax
import numpy as np
import pytest

from regionclip_jax.training import schedules

PAPER = dict(boundaries=(300_000, 525_000), gamma=0.1, warmup_steps=1000, warmup_factor=0.001)


@pytest.mark.parametrize(
    ("step", "multiplier"),
    [
        (0, 0.001),
        (1, 0.001 + 0.999 / 1000),
        (500, 0.5005),
        (1000, 1.0),
        (299_999, 1.0),
        (300_000, 0.1),
        (524_999, 0.1),
        (525_000, 0.01),
        (599_999, 0.01),
    ],
)
def test_the_multistep_rate_equals_the_reference_rate(step, multiplier):
    schedule = schedules.warmup_multistep(0.002, **PAPER)
    np.testing.assert_allclose(schedule(step), 0.002 * multiplier, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(step), 0.002 * multiplier, rtol=1e-6)


def test_a_boundary_inside_the_warm_up_counts():
    schedule = schedules.warmup_multistep(
        1.0, boundaries=(5,), gamma=0.1, warmup_steps=10, warmup_factor=0.0
    )
    np.testing.assert_allclose(schedule(4), 0.4, rtol=1e-6)
    np.testing.assert_allclose(schedule(5), 0.05, rtol=1e-6)


def test_without_warm_up_the_first_rate_is_the_peak():
    schedule = schedules.warmup_multistep(
        3.0, boundaries=(), gamma=0.1, warmup_steps=0, warmup_factor=0.001
    )
    assert schedule(0) == 3.0


def test_cosine_rises_to_the_peak_and_ends_at_zero():
    schedule = schedules.warmup_cosine(1.0, warmup_steps=4, total_steps=104)
    np.testing.assert_allclose([schedule(t) for t in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(schedule(4), 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedule(54), 0.5, rtol=1e-6)
    np.testing.assert_allclose([schedule(104), schedule(1000)], 0.0, atol=1e-7)


def test_cosine_without_warm_up_starts_at_the_peak():
    np.testing.assert_allclose(
        schedules.warmup_cosine(2.0, warmup_steps=0, total_steps=10)(0), 2.0, rtol=1e-6
    )


def test_unsorted_boundaries_are_refused():
    with pytest.raises(ValueError, match="increase strictly"):
        schedules.warmup_multistep(
            1.0, boundaries=(5, 3), gamma=0.1, warmup_steps=0, warmup_factor=0.1
        )


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="shorter than the total"):
        schedules.warmup_cosine(1.0, warmup_steps=10, total_steps=10)
