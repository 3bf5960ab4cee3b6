"""The blockwise and the ring loss against the plain loss: values, gradients and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from regionclip_jax.losses.image_text import image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)

NUM_ROWS, WIDTH = 16, 8


def ring(num_devices: int, chunk: int):
    mesh = jax.make_mesh(
        (num_devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:num_devices]
    )
    return functools.partial(ring_image_text_loss, chunk=chunk, mesh=mesh, axis="data")


def over_two_axes():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
    return functools.partial(ring_image_text_loss, chunk=2, mesh=mesh, axis=("data", "fsdp"))


def chunked(chunk: int):
    return functools.partial(chunked_image_text_loss, chunk=chunk)


# The tests call these functions, as the collection of tests must not need eight devices.
MAKE_FORM = {
    # One chunk does not divide the rows, and one has all rows.
    **{f"chunk {n}": functools.partial(chunked, n) for n in (5, 99)},
    **{f"ring of {n}": functools.partial(ring, n, chunk=3) for n in (1, 2, 4, 8)},
    "ring over two axes": over_two_axes,
}


@functools.cache
def form_of(name: str):
    return MAKE_FORM[name]()


@functools.cache
def value_and_gradients(form=image_text_loss, kind="softmax"):
    """Return a function to the loss and the gradients of images, texts, logit scale and bias."""

    def loss(images, texts, log_scale, bias, mask):
        bias = None if kind == "softmax" else bias
        return form(images, texts, mask, jnp.exp(-log_scale), bias)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))


def draw(seed: int, num_real: int):
    rng = np.random.default_rng(seed)
    images, noise = rng.standard_normal((2, NUM_ROWS, WIDTH)).astype(np.float32)
    mask = rng.permutation(NUM_ROWS) < num_real
    log_scale, bias = np.float32(rng.uniform(0, np.log(100))), np.float32(rng.uniform(-15, 2))
    return images, images + noise, log_scale, bias, mask


@pytest.mark.property
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "softmax") for name in MAKE_FORM]
    + [(name, "sigmoid") for name in ("chunk 5", "ring over two axes")],
)
@given(seed=st.integers(0, 2**32 - 1), num_real=st.integers(1, NUM_ROWS))
def test_every_form_equals_the_plain_loss_and_its_gradients(name, kind, seed, num_real):
    """Test masked rows, temperatures from 1 to CLIP's 0.01, and the gradients of both numbers."""
    arguments = draw(seed, num_real)
    expected, expected_gradients = value_and_gradients(image_text_loss, kind)(*arguments)
    loss, gradients = value_and_gradients(form_of(name), kind)(*arguments)
    # The tolerance is the rounding of differences of logits of up to 100.
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=2e-5)
    for actual, plain in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, plain, rtol=1e-4, atol=2e-5)
    for gradient in gradients[:2]:
        np.testing.assert_array_equal(gradient[~arguments[-1]], 0)
    assert (gradients[3] == 0) == (kind == "softmax")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["chunk 5", "ring of 8"])
def test_without_a_real_row_the_loss_and_its_gradients_are_zero(name, kind):
    zeros = np.zeros((NUM_ROWS, WIDTH), np.float32)
    loss, gradients = value_and_gradients(form_of(name), kind)(
        zeros, zeros, np.float32(4), np.float32(-10), np.zeros(NUM_ROWS, bool)
    )
    assert loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def temporary_bytes(form, num_rows: int, sharding=None) -> int:
    """Return the temporary memory per device of the compiled loss with its gradients."""
    rows = jax.ShapeDtypeStruct((num_rows, WIDTH), jnp.float32, sharding=sharding)
    mask = jax.ShapeDtypeStruct((num_rows,), jnp.bool_, sharding=sharding)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    compiled = value_and_gradients(form).lower(rows, rows, scale, scale, mask).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_batch_with_blocks_and_quadratic_without():
    """Measured: 269 MB plain and 1.7 MB in blocks of 32."""
    form = chunked(32)
    plain, blocks = (temporary_bytes(f, 4096) for f in (image_text_loss, form))
    assert plain > 4 * 4096**2
    # The memory has some blocks of logits and copies of the embeddings.
    assert blocks < 4 * 4096 * (4 * 32 + 8 * WIDTH)
    assert blocks < 6.5 * temporary_bytes(form, 1024)


def test_the_memory_per_device_of_the_ring_does_not_depend_on_the_number_of_devices():
    def of(num_devices):
        form = ring(num_devices, chunk=32)
        sharding = NamedSharding(form.keywords["mesh"], PartitionSpec("data"))
        return temporary_bytes(form, 512 * num_devices, sharding)

    assert of(8) < 1.1 * of(2)
