from pathlib import Path

import jax.numpy as jnp
import pytest

from regionclip_jax.training import nan_guard

GOOD = Path("run/checkpoints/40")


def test_the_first_bad_metric_is_named_with_step_and_checkpoint():
    metrics = {"loss": 1.0, "distillation": float("nan"), "contrastive": float("inf")}
    with pytest.raises(nan_guard.NonFiniteMetric) as caught:
        nan_guard.require_finite(57, metrics, last_good=lambda: GOOD)
    assert "step 57: metric 'distillation' is nan" in str(caught.value)
    assert str(GOOD) in str(caught.value)


def test_finite_metrics_pass():
    nan_guard.require_finite(1, {"loss": 0.0, "norm": 1e30}, last_good=lambda: None)


def guarded(saved):
    return nan_guard.only_if_finite(lambda step, *_: saved.append(step), lambda: GOOD)


def test_a_finite_state_is_saved():
    saved = []
    metrics = {"loss": jnp.float32(1), "top1": (jnp.float32(0), jnp.float32(0))}
    guarded(saved)(3, {"w": jnp.ones(2), "step": jnp.int32(3)}, metrics)
    assert saved == [3]


@pytest.mark.parametrize("bad", [jnp.float32(jnp.nan), (jnp.float32(jnp.inf), jnp.float32(2))])
def test_no_state_is_saved_after_a_metric_that_is_not_finite(bad):
    saved = []
    with pytest.raises(nan_guard.NonFiniteMetric, match="metric 'loss'"):
        guarded(saved)(3, {"w": jnp.ones(2)}, {"loss": bad})
    assert saved == []


def test_no_state_is_saved_if_only_a_tensor_is_not_finite():
    saved = []
    state = {"params": {"conv": {"kernel": jnp.array([1.0, jnp.nan])}}, "step": jnp.int32(1)}
    with pytest.raises(nan_guard.NonFiniteMetric, match="tensor 'params/conv/kernel'"):
        guarded(saved)(3, state, {"loss": jnp.float32(1)})
    assert saved == []


def test_the_message_reports_a_missing_checkpoint():
    with pytest.raises(nan_guard.NonFiniteMetric, match="no checkpoint was saved yet"):
        nan_guard.require_finite(1, {"loss": float("inf")}, last_good=lambda: None)
