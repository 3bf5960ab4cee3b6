"""A fixed batch of drawn pictures, and the eight devices as one data axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.structures import ImageTextBatch


@pytest.fixture(scope="session")
def pair_batch() -> ImageTextBatch:
    """Eight pictures of one colour each on 64 x 64 canvases, two of them smaller; a word each."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (8, 1, 1, 3))
    images = np.clip(colours + rng.normal(0, 20, (8, 64, 64, 3)), 0, 255).astype(np.uint8)
    sizes = np.full((8, 2), 64, np.int32)
    sizes[2], sizes[5] = (48, 64), (64, 40)
    tokens = np.zeros((8, 16), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 598, 20 + np.arange(8), 599
    batch = ImageTextBatch(images=images, sizes=sizes, tokens=tokens, mask=np.ones(8, bool))
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="session")
def shard():
    """``shard(replicated, batch)``: on eight devices, the batch split along its first axis."""
    devices = jax.devices("cpu")
    assert len(devices) == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    everywhere = jax.NamedSharding(mesh, jax.P())
    split = jax.NamedSharding(mesh, jax.P("data"))
    return lambda tree, batch: (jax.device_put(tree, everywhere), jax.device_put(batch, split))


@pytest.fixture(scope="session")
def assert_same_update():
    """Two states after the same step from ``before`` agree within ``tolerance`` of the update."""

    def check(before, found, expected, tolerance: float = 1e-3):
        changes = [
            np.concatenate(
                [
                    np.ravel(np.asarray(a) - np.asarray(b))
                    for a, b in zip(
                        jax.tree.leaves((state.params, state.batch_stats)),
                        jax.tree.leaves((before.params, before.batch_stats)),
                        strict=True,
                    )
                ]
            )
            for state in (found, expected)
        ]
        difference = np.abs(changes[0] - changes[1]).max() / np.abs(changes[1]).max()
        assert 0 < np.abs(changes[1]).max() and difference < tolerance, difference
        return difference

    return check
