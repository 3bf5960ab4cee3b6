"""The mask head against a plain loop of the transposed convolution (there are no golden arrays)."""

import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.models.detector_heads import MaskHead


def test_logits_are_those_of_a_loop_over_cells():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    head = MaskHead(features=6)
    params = head.init(jax.random.key(0), jnp.asarray(maps))["params"]
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params
    )
    kernel, bias = params["deconv"]["kernel"], params["deconv"]["bias"]
    expected = np.zeros((2, 6, 8))
    for n, y, x in np.ndindex(2, 6, 8):
        hidden = np.maximum(maps[n, y // 2, x // 2] @ kernel[y % 2, x % 2] + bias, 0)
        expected[n, y, x] = (hidden @ params["predictor"]["kernel"])[0]
    expected += params["predictor"]["bias"][0]
    found = head.apply({"params": params}, jnp.asarray(maps))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
