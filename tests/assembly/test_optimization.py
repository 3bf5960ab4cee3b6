import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.assembly.optimization import (
    build_mesh,
    build_optimizer,
    build_schedule,
    build_state,
    image_text_loss_on,
)
from regionclip_jax.losses.image_text import image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)
from regionclip_jax.settings import ConfigError
from regionclip_jax.sharding.mesh import make_mesh


def test_a_batch_size_that_the_devices_do_not_divide_is_a_config_error():
    with pytest.raises(ConfigError, match=r"run\.batch_size: .*among 8 devices"):
        build_mesh(12, "run.batch_size")
    with pytest.raises(ConfigError, match=r"run\.fsdp: 3 does not divide the 8 devices"):
        build_mesh(8, "run.batch_size", fsdp=3)


def test_the_schedule_follows_the_recipe(optimizer):
    multistep = dataclasses.replace(optimizer, warmup_steps=4, warmup_factor=0.5, boundaries=(10,))
    rate = build_schedule(multistep, num_steps=20)
    assert float(rate(0)) == pytest.approx(0.025)
    assert float(rate(5)) == pytest.approx(0.05) and float(rate(11)) == pytest.approx(0.005)
    cosine = dataclasses.replace(optimizer, schedule="cosine", warmup_steps=2)
    rate = build_schedule(cosine, num_steps=20)
    assert float(rate(2)) == pytest.approx(0.05) and float(rate(20)) == pytest.approx(0, abs=1e-6)


def test_contradictory_optimizer_settings_are_a_config_error(optimizer):
    cosine = dataclasses.replace(optimizer, schedule="cosine", warmup_steps=9)
    with pytest.raises(ConfigError, match="optimizer: "):
        build_optimizer(cosine, num_steps=5)


def test_patterns_select_frozen_parameters_and_an_unmatched_pattern_is_refused(
    optimizer, nano_weights
):
    variables = nano_weights("nano_vit", 0)
    state = build_state(optimizer, variables, optax.sgd(0.1))
    assert set(state.params) == {"visual"} and set(state.frozen_params) == {"text", "logit_scale"}
    wrong = dataclasses.replace(optimizer, frozen_patterns=("^txt/",))
    with pytest.raises(ConfigError, match=r"optimizer: frozen pattern '\^txt/' matches none"):
        build_state(wrong, variables, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("chunk", "num_devices", "form"),
    [
        (None, 8, image_text_loss),
        (16, 1, chunked_image_text_loss),
        (16, 8, ring_image_text_loss),
    ],
)
def test_the_image_text_loss_is_plain_without_a_chunk_and_a_ring_on_several_devices(
    chunk, num_devices, form
):
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    loss = image_text_loss_on(mesh, chunk)
    if chunk is None:
        assert loss is form
    else:
        assert loss.func is form and loss.keywords["chunk"] == chunk


def test_the_norm_of_all_gradients_together_is_bounded(optimizer):
    """Gradients (3, 4) and (12,) have the norm 13 together; without a bound they stay."""
    settings = dataclasses.replace(optimizer, learning_rate=1.0, momentum=0.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    for bound, factor in ((None, 1.0), (26.0, 1.0), (1.3, 0.1)):
        built = build_optimizer(dataclasses.replace(settings, clip_global_norm=bound), 10)
        updates, _ = built.update(gradients, built.init(params), params)
        np.testing.assert_allclose(updates["a"], [-3 * factor, -4 * factor], rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [-12 * factor], rtol=1e-6)
