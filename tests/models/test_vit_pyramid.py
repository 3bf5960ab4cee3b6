"""Feature pyramid and heads on the blocks of a ViT, against plain loops and on other canvases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, unflatten
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.convolution import TransposedConv
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.models.vit_pyramid import (
    BOX_CELLS,
    MASK_CELLS,
    PyramidConfig,
    PyramidHeads,
    as_pyramid,
    crop_from_pyramid,
    init_pyramid_heads,
    propose_from_pyramid,
    pyramid_anchors,
    tower_features,
)
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.roi_align_levels import level_of_boxes, roi_align_levels
from regionclip_jax.settings import ProposalSettings

CONFIG = PyramidConfig((1, 2, 3, 4), 24, channels=6)
TOWERS = {
    "vit": ViTConfig(patch_size=16, layers=5, width=24, heads=2),
    "eva": EVAConfig(patch_size=14, layers=5, width=24, heads=3, mlp_width=20),
}


def random_like(shapes: dict, seed: int) -> dict:
    """Return variables with unequal scales and statistics, which reveal a norm that is skipped."""
    rng = np.random.default_rng(seed)

    def value(path, shape):
        if path.endswith(("scale", "var")):
            return rng.uniform(0.5, 1.5, shape)
        fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4
        return rng.normal(size=shape) / fan_in**0.5

    return unflatten(
        {
            path: jnp.asarray(value(path, leaf.shape), jnp.float32)
            for path, leaf in flatten(shapes).items()
        }
    )


@pytest.fixture(scope="module", params=["vit", pytest.param("eva", marks=pytest.mark.slow)])
def parts(request, nano_configs):
    """A CLIP with its variables, and heads with masks with theirs."""
    config = dataclasses.replace(nano_configs["vit"], image=TOWERS[request.param])
    heads = PyramidHeads(CONFIG, config.embed_dim, with_masks=True)
    shapes = jax.eval_shape(lambda: init_pyramid_heads(heads, jax.random.key(0)))
    clip = random_like(abstract_variables(config), 0)
    return CLIP(config), clip, heads, random_like(shapes, 1)


def test_a_transposed_convolution_equals_a_loop():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 2, 5, 6))
    bias = rng.normal(size=6)
    expected = np.zeros((2, 6, 8, 6))
    for row in range(3):
        for column in range(4):
            for i in range(2):
                for j in range(2):
                    expected[:, 2 * row + i, 2 * column + j] = x[:, row, column] @ kernel[i, j]
    variables = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    found = TransposedConv(6).apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected + bias, atol=1e-5)


def images_of(height: int, width: int) -> jax.Array:
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.integers(0, 255, (1, height, width, 3), dtype=np.uint8))


def all_outputs(parts, images, sizes, dtype=jnp.float32):
    """Return the pyramid, and the outputs of the proposal network for each level."""
    model, clip, heads, variables = parts
    model, heads = model.clone(dtype=dtype), heads.clone(dtype=dtype)

    @jax.jit
    def outputs(images, sizes):
        features, maps = tower_features(model, clip, images, sizes, CONFIG.from_blocks)
        levels = heads.apply(variables, maps, features.cells, method=heads.levels)
        pyramid = as_pyramid(levels, features.cells, model.stride)
        return pyramid, [
            heads.apply(variables, level, cells, method=heads.predict)
            for level, cells in zip(pyramid.levels, pyramid.cells, strict=True)
        ]

    return outputs(images, sizes)


def test_levels_and_heads_have_the_strides_of_the_patches(parts):
    """A canvas of 5 patches is enlarged to 6: levels of 24, 12, 6, 3 and 2 cells."""
    model, _, heads, variables = parts
    dtype = jnp.float32 if model.stride == 16 else jnp.bfloat16
    side = 5 * model.stride
    pyramid, outputs = all_outputs(parts, images_of(side, side), jnp.array([[side, side]]), dtype)
    assert [level.shape[1:] for level in pyramid.levels] == [(n, n, 6) for n in (24, 12, 6, 3, 2)]
    assert pyramid.strides == tuple(model.stride * x for x in (0.25, 0.5, 1, 2, 4))
    np.testing.assert_array_equal([c[0, 0] for c in pyramid.cells], [20, 10, 5, 3, 2])
    anchors, real = pyramid_anchors(pyramid)
    for (logits, deltas), own, exists in zip(outputs, anchors, real, strict=True):
        assert logits.shape == exists.shape and deltas.shape == (1, *own.shape)
    np.testing.assert_allclose((anchors[0][1, 2:] - anchors[0][1, :2]), 2 * model.stride)
    boxes = jnp.array([[[3.0, 4, 60, 50], [0, 0, 20, 20]]])

    @jax.jit
    def of_regions(pyramid, boxes):
        crops, larger = (
            crop_from_pyramid(pyramid, boxes, n, "auto")[0] for n in (BOX_CELLS, MASK_CELLS)
        )
        embeddings, deltas = heads.apply(variables, crops, method=heads.embed)
        masks = heads.apply(variables, larger, method=heads.draw_masks)
        logits = heads.apply(variables, embeddings, jnp.eye(3, 32), method=heads.logits)
        return embeddings, deltas, masks, logits

    embeddings, deltas, masks, logits = of_regions(pyramid, boxes)
    assert embeddings.shape == (2, 32) and deltas.shape == (2, 4) and (embeddings >= 0).all()
    assert masks.shape == (2, 28, 28) and masks.dtype == jnp.float32
    assert logits.shape == (2, 4) and np.isfinite(logits).all()


def test_the_canvas_changes_no_level_of_an_image(parts):
    stride = parts[0].stride
    height, width = 4 * stride, 3 * stride
    images = images_of(height, width)
    canvas = jnp.zeros((1, 8 * stride, 6 * stride, 3), jnp.uint8)
    canvas = canvas.at[:, :height, :width].set(images)
    sizes = jnp.array([[height, width]])
    (alone, own), (padded, others) = (all_outputs(parts, x, sizes) for x in (images, canvas))
    for level, other, cells in zip(alone.levels, padded.levels, alone.cells, strict=True):
        h, w = np.asarray(cells[0])
        level, other = level[:, :h, :w], other[:, :h, :w]
        assert np.abs(level - other).max() < 1e-4 * np.abs(level).max()
    settings = ProposalSettings(num_proposals=20, pre_nms_topk=50, nms_threshold=0.7)

    @jax.jit
    def propose(levels, cells, outputs):
        pyramid = as_pyramid(levels, cells, stride)
        logits, deltas = [x for x, _ in outputs], [d for _, d in outputs]
        return propose_from_pyramid(pyramid, logits, deltas, sizes, settings)

    regions = [propose(p.levels, p.cells[2], o) for p, o in ((alone, own), (padded, others))]
    assert regions[0].mask.any()
    np.testing.assert_allclose(regions[0].boxes, regions[1].boxes, atol=1e-2)


def test_maps_of_blocks_are_those_of_shorter_towers(parts):
    """The map of block i is the input of block i + 1, which a tower of i + 2 blocks has last."""
    model, clip, *_ = parts
    images = images_of(3 * model.stride, 2 * model.stride)
    pixels, sizes = images / 255.0, jnp.array([images.shape[1:3]])

    def call(model, clip, blocks):
        return jax.jit(
            lambda: model.apply(clip, pixels, sizes, blocks, method=model.features_and_blocks)
        )()

    features, maps = call(model, clip, (1, 2, 4))
    plain = jax.jit(lambda: model.apply(clip, pixels, sizes, method=model.image_features))()
    np.testing.assert_array_equal(features.map, plain.map)
    config = dataclasses.replace(
        model.config, image=dataclasses.replace(model.config.image, layers=3)
    )
    blocks = clip["params"]["visual"]["blocks"]
    # A last block whose output maps are zero adds nothing to its input.
    last = {
        **blocks["block2"],
        **{
            part: {
                name: jax.tree.map(jnp.zeros_like, leaf) if name in ("out_proj", "c_proj") else leaf
                for name, leaf in blocks["block2"][part].items()
            }
            for part in ("attention", "mlp")
        },
    }
    visual = clip["params"]["visual"] | {"blocks": blocks | {"block2": last}}
    shorter = {**clip, "params": clip["params"] | {"visual": visual}}
    _, (short,) = call(CLIP(config), shorter, (2,))
    np.testing.assert_allclose(maps[0], short, atol=1e-6)
    assert np.abs(maps[1] - maps[0]).max() > 1e-3 and maps[2].shape == maps[0].shape


def test_each_box_is_cropped_from_the_level_of_its_size():
    rng = np.random.default_rng(0)
    strides = (16, 32, 64, 128)
    levels = [
        jnp.asarray(rng.normal(size=(1, 512 // s, 512 // s, 1)), jnp.float32) for s in strides
    ]
    extents = [jnp.full((1, 2), 512 // s) for s in strides]
    sides = np.array([20, 111, 113, 223, 225, 447, 449, 500, 0], np.float32)
    low = rng.uniform(0, 10, (1, 9, 2)).round(1)
    boxes = jnp.asarray(np.concatenate([low, low + sides[:, None]], -1), jnp.float32)
    chosen = level_of_boxes(boxes, 4)
    np.testing.assert_array_equal(chosen, [[0, 0, 1, 1, 2, 2, 3, 3, 0]])
    found = jax.jit(lambda boxes: roi_align_levels(levels, boxes, 3, strides, extents=extents))(
        boxes
    )
    align = jax.jit(roi_align, static_argnums=(2, 3))
    every = [align(level, boxes, 3, 1 / s) for level, s in zip(levels, strides, strict=True)]
    for row, level in enumerate(np.asarray(chosen[0])):
        np.testing.assert_allclose(found[:, row], every[level][:, row], atol=1e-6)
