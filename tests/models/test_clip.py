"""Embeddings of regions and of whole images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.models.clip import CLIP, encode_regions, whole_image_boxes
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import PRESETS, preset_name
from regionclip_jax.structures import ImageFeatures


@pytest.fixture(scope="module")
def resnet(nano_configs, nano_variables):
    return CLIP(nano_configs["resnet"]), nano_variables("resnet")


def random_boxes(num, height, width, seed=0):
    corners = np.random.default_rng(seed).uniform(0, 1, (2, num, 2, 2)) * [width, height]
    corners.sort(axis=2)
    return jnp.asarray(corners.reshape(2, num, 4), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def embed(model, variables, pixels, boxes):
    features = model.apply(variables, pixels, method=model.image_features)
    return encode_regions(model, variables, features, boxes)


@pytest.mark.property
def test_chunks_change_neither_embeddings_nor_gradients(resnet, relative_error):
    """Embed five regions in chunks of two, so that the last chunk is padded."""
    model, variables = resnet
    feature_map = jax.random.normal(jax.random.key(1), (2, 6, 8, 128))
    boxes = random_boxes(5, 96, 128)
    weights = jax.random.normal(jax.random.key(2), (2, 5, 32))

    def weighted_sum(params, feature_map, chunk):
        out = encode_regions(
            model, {**variables, "params": params}, ImageFeatures(feature_map, None), boxes,
            regions_per_chunk=chunk,
        )  # fmt: skip
        return (out * weights).sum(), out

    grad = jax.jit(jax.grad(weighted_sum, (0, 1), has_aux=True), static_argnums=2)
    (whole_params, whole_map), whole = grad(variables["params"], feature_map, None)
    (params, feature_gradient), out = grad(variables["params"], feature_map, 2)
    assert relative_error(out, whole) < 1e-5
    assert relative_error(feature_gradient, whole_map) < 1e-5
    layer4 = whole_params["visual"]["layer4"]["block0"]["conv2"]["kernel"]
    assert relative_error(params["visual"]["layer4"]["block0"]["conv2"]["kernel"], layer4) < 1e-5
    for actual, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(whole_params), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.property
def test_an_image_of_the_training_size_equals_the_region_that_covers_it(resnet, relative_error):
    model, variables = resnet
    x = jax.random.normal(jax.random.key(3), (2, 64, 64, 3))
    encode = jax.jit(lambda x: model.apply(variables, x, method=model.encode_image))
    boxes = whole_image_boxes(jnp.full((2, 2), 64))[:, None]
    whole = encode(x)
    assert relative_error(embed(model, variables, x, boxes)[:, 0], whole) < 1e-5
    narrow = encode(x[:, :, :48])
    assert narrow.shape == whole.shape and np.isfinite(np.asarray(narrow)).all()


@pytest.mark.property
def test_padding_changes_only_regions_near_the_image_edge(resnet, relative_error):
    """Compare regions of an image on larger canvases with those without padding.

    Padded cells are zero at the input but not after the first norm. Without padding, convolutions
    add zeros. A cell of ``res4`` depends on 28 pixels beyond it and RoIAlign on one more cell, so
    regions that end 44 pixels before the edge are equal. The box of the whole image does not depend
    on the size of the padding.
    """
    model, variables = resnet

    image = jax.random.normal(jax.random.key(4), (1, 128, 128, 3))
    boxes = jnp.array([[0.0, 0, 80, 80], [20, 10, 75, 83], [0, 0, 128, 128]])[None]
    alone = embed(model, variables, image, boxes)[0]
    padded = {}
    for side in (64, 128):
        canvas = jnp.pad(image, ((0, 0), (0, side), (0, side), (0, 0)))
        padded[side] = embed(model, variables, canvas, boxes)[0]
    assert relative_error(padded[64][:2], alone[:2]) < 1e-5
    assert relative_error(padded[64], padded[128]) < 1e-5
    assert relative_error(padded[64][2], alone[2]) > 1e-3


def test_presets_are_identified_by_sizes_and_published_ones_have_heads_of_64_channels():
    # The presets are listed by name, as tests of the jobs add small presets to the table.
    vit = ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336"]
    for name in ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", *vit, "tiny", "scenes"]:
        preset = PRESETS[name]
        assert preset_name(preset) == name
        image, text = preset.image, preset.text
        channels = image.width * (32 if isinstance(image, ResNetConfig) else 1)
        assert channels // image.heads == 64, name
        # A narrow tower with one head of 64 channels learns only with some seeds.
        text_channels = 16 if name == "scenes" else 64
        assert text.width // text.heads == text_channels, name
    some = [PRESETS[name] for name in ("RN50", "RN50x4", "ViT-B/16")]
    assert [c.image.grid_size(c.preprocessing.resolution) for c in some] == [7, 9, 14]
    assert [CLIP(PRESETS[n]).crop_size for n in ("RN50", "RN50x4", "ViT-B/16")] == [14, 18, 1]


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_bf16_embeddings_are_close_to_fp32(nano_configs, nano_variables, relative_error, name):
    config, variables = nano_configs[name], nano_variables(name)
    x = jax.random.normal(jax.random.key(5), (2, 64, 64, 3))
    tokens = jnp.array([[598, 4, 5, 599], [598, 9, 599, 0]])
    expected = jax.jit(CLIP(config).apply)(variables, x, tokens)
    actual = jax.jit(CLIP(config, dtype=jnp.bfloat16).apply)(variables, x, tokens)
    for half, full in zip(actual, expected, strict=True):
        assert half.dtype == jnp.bfloat16
        assert relative_error(np.asarray(half, np.float32), full) < 5e-2


def test_with_a_normalized_map_a_region_is_the_mean_of_unit_cells(nano_configs, nano_variables):
    """Compare boxes on the grid, whose samples are the centres of cells, and an image's extent."""
    model = CLIP(dataclasses.replace(nano_configs["vit"], normalize_map=True))
    variables, rng = nano_variables("vit"), np.random.default_rng(0)
    # One cell is much longer than the others.
    cells = rng.normal(size=(1, 4, 4, 64)).astype(np.float32)
    cells[0, 1, 1] *= 50
    boxes = np.array([[[0, 16, 32, 48], [32, 0, 48, 16], [0, 0, 64, 64]]], np.float32)
    features = ImageFeatures(jnp.asarray(cells), None, jnp.array([[4, 4]]))
    found = jax.jit(encode_regions, static_argnums=0)(model, variables, features, boxes)
    embeddings = cells[0] @ np.asarray(variables["params"]["visual"]["projection"])
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    expected = [unit[1:3, 0:2], unit[0:1, 2:3], unit]
    for row, part in zip(found[0], expected, strict=True):
        np.testing.assert_allclose(row, part.mean((0, 1)), rtol=1e-4, atol=1e-6)
