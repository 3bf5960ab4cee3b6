"""A fixed batch of random images, and two updates on any mesh of the eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.sharding.global_arrays import (
    gather,
    replicated_sharding,
    shard,
    to_global_batch,
)
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.sharding.partition_rules import parameter_shardings
from regionclip_jax.structures import DetectionBatch, ImageTextBatch


@pytest.fixture(scope="session")
def pair_batch() -> ImageTextBatch:
    """Eight images of one colour each with one word each; two images are below 64 x 64 pixels."""
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
def box_batch() -> DetectionBatch:
    """Batch of eight images of 64 pixels; the last row is padding, and one image has no box."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 30, (8, 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(15, 30, low.shape)], -1).astype(np.float32)
    mask = np.arange(8) < 7
    box_mask = (rng.random((8, 3)) < 0.7) & mask[:, None]
    box_mask[:, 0], box_mask[3] = mask, False
    return DetectionBatch(
        images=rng.integers(0, 255, (8, 64, 64, 3), dtype=np.uint8) * mask[:, None, None, None],
        sizes=np.where(mask[:, None], 64, 0).astype(np.int32) * np.ones((8, 2), np.int32),
        boxes=boxes * box_mask[..., None],
        classes=rng.integers(0, 5, (8, 3)).astype(np.int32) * box_mask,
        box_mask=box_mask,
        image_ids=np.arange(8, dtype=np.int32),
        scales=np.ones((8, 2), np.float32),
        mask=mask,
        object_masks=np.ones((8, 3, 4, 4), np.uint8) * box_mask[..., None, None],
    )


@pytest.fixture(scope="session")
def two_updates():
    """``two_updates(step, state, frozen, batch, mesh)``: state, and metrics of both updates.

    With a mesh of (devices, fsdp), arrays are sharded by the rules and the state is donated as in a
    job. Without a mesh, the jitted step runs unchanged on one device.
    """

    def run(step, state, frozen, batch, mesh: tuple[int, int] | None = None):
        if mesh is None:
            after, first = step(state, frozen, batch)
            after, second = step(after, frozen, batch)
            return after, [first, second]
        mesh = make_mesh(fsdp=mesh[1], devices=jax.devices()[: mesh[0]])
        shardings = parameter_shardings(state, mesh)
        step = jax.jit(step, out_shardings=(shardings, replicated_sharding(mesh)), donate_argnums=0)
        before, batch = shard(state, shardings), to_global_batch(batch, mesh)
        frozen = shard(frozen, parameter_shardings(frozen, mesh))
        after, first = step(before, frozen, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        if mesh.shape["fsdp"] > 1:
            assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(after))
        after, second = step(after, frozen, batch)
        return gather(after), [gather(first), gather(second)]

    return run


@pytest.fixture(scope="session")
def assert_same_update():
    """Check that two updates of ``before`` are equal within ``tolerance`` of the largest change."""

    def check(before, actual, expected, tolerance: float = 1e-3):
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
            for state in (actual, expected)
        ]
        difference = np.abs(changes[0] - changes[1]).max() / np.abs(changes[1]).max()
        assert 0 < np.abs(changes[1]).max() and difference < tolerance, difference
        return difference

    return check
