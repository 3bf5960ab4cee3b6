import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from marks import on_accelerators
from regionclip_jax.losses.image_text_blockwise import ring_image_text_loss
from regionclip_jax.models.clip import CLIP, with_initial_bias
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.steps.train_clip_step import MAX_LOGIT_SCALE, make_train_clip_step
from regionclip_jax.steps.train_state import create_train_state

OPTIMIZER = optax.sgd(0.05, momentum=0.9)


@pytest.fixture(scope="module")
def start(nano_configs, nano_variables):
    """``start(name)``: the jitted step and the state before it."""

    @functools.cache
    def make(name):
        model = CLIP(nano_configs[name], frozen_norm=False)
        state = create_train_state(nano_variables(name), ["text/positional"], OPTIMIZER)
        return jax.jit(make_train_clip_step(model, OPTIMIZER)), state

    return make


@on_accelerators
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_loss_falls_and_frozen_parameters_do_not_change(start, pair_batch, name):
    step, first = start(name)
    state, losses = first, []
    for _ in range(15):
        state, metrics = step(state, pair_batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.5 * losses[0], losses
    assert state.step == 15 and metrics["skipped_records"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.frozen_params, first.frozen_params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, first.params)
    flat = {jax.tree_util.keystr(path): m for path, m in jax.tree.leaves_with_path(moved)}
    # The key bias of the attention pool has no effect by design.
    unmoved = {path for path, m in flat.items() if not m}
    assert all("k_proj" in path and "bias" in path for path in unmoved), unmoved
    if name == "resnet":
        statistics = zip(
            jax.tree.leaves(state.batch_stats), jax.tree.leaves(first.batch_stats), strict=True
        )
        assert all((a != b).any() for a, b in statistics)


def test_eight_devices_make_the_updates_of_one(start, pair_batch, two_updates, assert_same_update):
    """Live batch norm and the contrastive loss use the global batch, and four devices share the
    parameters. Measured in one update: 5e-7 of the largest change of a parameter."""
    step, state = start("resnet")

    def with_frozen(state, frozen, batch):
        return step(state, batch)

    expected, losses = two_updates(with_frozen, state, (), pair_batch)
    actual, metrics = two_updates(with_frozen, state, (), pair_batch, mesh=(8, 4))
    for one, other in zip(losses, metrics, strict=True):
        assert other["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)
    assert_same_update(state, actual, expected, tolerance=1e-4)


def test_a_skipped_record_is_counted_and_has_no_effect(start, pair_batch):
    """Check the loss of a ViT, as it has no batch statistics."""
    step, state = start("vit")
    mask = pair_batch.mask.at[3].set(False)
    batch = pair_batch.replace(mask=mask)
    expected, metrics = step(state, batch)
    assert metrics["skipped_records"] == 1
    other = batch.replace(
        images=batch.images.at[3].set(255), tokens=batch.tokens.at[3].set(batch.tokens[0])
    )
    actual, other_metrics = step(state, other)
    assert metrics["loss"] == other_metrics["loss"]
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


@pytest.mark.slow
def test_the_sigmoid_learns_scale_and_bias_alike_on_devices_in_a_ring(
    nano_configs, nano_variables, pair_batch, two_updates, assert_same_update
):
    """SigLIP's scale has no limit. Measured: 7e-7 of the
    largest change of a parameter."""
    model = CLIP(dataclasses.replace(nano_configs["vit"], logit_bias=True))
    params = with_initial_bias(nano_variables("vit")["params"])
    assert np.exp(params["logit_scale"]) == pytest.approx(10) and params["logit_bias"] == -10
    state = create_train_state({"params": params, "batch_stats": {}}, [], OPTIMIZER)

    def stepping(**how):
        step = make_train_clip_step(model, OPTIMIZER, sigmoid=True, **how)
        return lambda state, frozen, batch: step(state, batch)

    step = jax.jit(stepping())
    expected, metrics = two_updates(step, state, (), pair_batch)
    ring = functools.partial(
        ring_image_text_loss, chunk=1, mesh=make_mesh(fsdp=4), axis=("data", "fsdp")
    )
    actual, other = two_updates(stepping(image_text=ring), state, (), pair_batch, (8, 4))
    for one, two in zip(metrics, other, strict=True):
        assert two["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)
    assert_same_update(state, actual, expected, tolerance=1e-4)
    for name in ("logit_scale", "logit_bias"):
        assert expected.params[name] != params[name]

    large = state.replace(params=params | {"logit_scale": np.float32(np.log(150))})
    _, metrics = step(large, (), pair_batch)
    assert metrics["temperature"] == pytest.approx(1 / 150, rel=1e-5)


def test_the_logit_scale_is_capped(start, pair_batch):
    step, state = start("vit")
    params = {**state.params, "logit_scale": np.float32(9.0)}
    _, metrics = step(state.replace(params=params), pair_batch)
    assert metrics["temperature"] == pytest.approx(1 / MAX_LOGIT_SCALE, rel=1e-5)
