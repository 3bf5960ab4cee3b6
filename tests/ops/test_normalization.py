import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.ops.normalization import normalize_images, real_pixels, unit_length
from regionclip_jax.structures import Preprocessing


def test_real_pixels_are_the_top_left_corner_of_each_canvas():
    real = np.asarray(real_pixels(jnp.array([[2, 3], [4, 1], [0, 0]]), 4, 5))
    assert real.sum((1, 2)).tolist() == [6, 4, 0]
    assert real[0, :2, :3].all() and real[1, :, 0].all()


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(224), Preprocessing(384, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))],
)
def test_pixels_are_normalised_and_padding_is_zero_whatever_bytes_it_holds(preprocessing):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    sizes = jnp.array([[4, 5], [2, 3]])
    pixels = np.asarray(normalize_images(jnp.asarray(images), sizes, preprocessing))
    expected = (images / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(pixels[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(pixels[1, :2, :3], expected[1, :2, :3], atol=2e-6)
    assert not pixels[1, 2:].any() and not pixels[1, :, 3:].any()


def test_unit_length_is_the_l2_norm_and_finite_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit_length(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit_length(x).sum())(x)
    assert np.isfinite(np.asarray(gradient)).all()
