"""Dense features of the ViT, which are not in the reference."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.vision_transformer import VisionTransformer, ViTConfig

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.partial(jax.jit, static_argnums=0)
def image_features(model, variables, pixels):
    return model.apply(variables, pixels, method=model.image_features)


@pytest.fixture(scope="module")
def vit(nano_configs, nano_variables):
    return CLIP(nano_configs["vit"]), nano_variables("vit")


def pixels(height, width):
    return jax.random.normal(jax.random.key(1), (2, height, width, 3))


ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}


def plain_dense_map(params, x, config):
    """Return dense tokens by definition: ordinary blocks, with only values in the last block."""
    patch, num_heads = config.patch_size, config.heads

    def layer_norm(x, params):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.eps)
        return scaled * params["scale"] + params["bias"]

    num, height, width, _ = x.shape
    h, w = height // patch, width // patch
    patches = x.reshape(num, h, patch, w, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = params["patch_embedding"]["kernel"]
    tokens = patches.reshape(num, h * w, -1) @ kernel.reshape(-1, kernel.shape[-1])
    first = np.broadcast_to(params["class_embedding"], (num, 1, tokens.shape[-1]))
    tokens = np.concatenate([first, tokens], 1) + params["positional_embedding"]
    tokens = layer_norm(tokens, params["ln_pre"])

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def mlp(x, block):
        hidden = dense(layer_norm(x, block["ln_2"]), block["mlp"]["c_fc"])
        return x + dense(ACTIVATIONS[config.activation](hidden), block["mlp"]["c_proj"])

    def attention(x, p):
        shape = (*x.shape[:2], num_heads, x.shape[2] // num_heads)
        q, k, v = (dense(x, p[f"{letter}_proj"]).reshape(shape) for letter in "qkv")
        scores = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return dense(np.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape), p["out_proj"])

    *blocks, last = (params["blocks"][f"block{i}"] for i in range(len(params["blocks"])))
    for block in blocks:
        tokens = mlp(
            tokens + attention(layer_norm(tokens, block["ln_1"]), block["attention"]), block
        )
    tokens = tokens[:, 1:]
    values = dense(layer_norm(tokens, last["ln_1"]), last["attention"]["v_proj"])
    tokens = mlp(tokens + dense(values, last["attention"]["out_proj"]), last)
    return layer_norm(tokens, params["ln_post"]).reshape(num, h, w, -1)


@pytest.mark.property
@pytest.mark.parametrize(
    ("activation", "eps", "heads"),
    [("quick_gelu", 1e-5, 2), ("gelu", 1e-2, 4), ("gelu_tanh", 0.1, 1)],
)
def test_the_dense_map_equals_a_plain_formula(vit, relative_error, activation, eps, heads):
    model, variables = vit
    image = dataclasses.replace(model.config.image, activation=activation, eps=eps, heads=heads)
    model = CLIP(dataclasses.replace(model.config, image=image))
    # Biases are changed from zero, so that a missing one is detected.
    noise = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape), variables)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    x = pixels(64, 64)
    features = image_features(model, variables, x)
    params = jax.tree.map(np.float64, variables["params"]["visual"])
    assert relative_error(features.map, plain_dense_map(params, np.float64(x), image)) < 1e-5


@pytest.mark.property
def test_positions_are_unchanged_at_the_training_grid_and_interpolated_elsewhere(vit):
    model, variables = vit
    # The positions are a constant and two ramps, as resizing keeps a constant and stretches ramps.
    rows, columns = jnp.meshgrid(jnp.arange(4.0), jnp.arange(4.0), indexing="ij")
    grid = jnp.stack([jnp.full((4, 4), 5.0), rows, columns] + [rows * 0] * 61, -1)
    table = jnp.concatenate([jnp.full((1, 64), -3.0), grid.reshape(16, 64)])
    params = variables["params"]
    visual = {**params["visual"], "positional_embedding": table}
    variables = {"params": {**params, "visual": visual}}

    def positions(height, width):
        return model.apply(
            variables, height, width, method=lambda m, *grid: m.visual._positions(*grid)
        )

    np.testing.assert_array_equal(positions(4, 4), table[None])
    (resized,) = positions(8, 4)
    np.testing.assert_array_equal(resized[0], -3.0)
    resized = np.asarray(resized[1:]).reshape(8, 4, 64)
    np.testing.assert_allclose(resized[..., 0], 5.0, rtol=1e-6)
    np.testing.assert_allclose(resized[3:5, :, 1].T, np.tile([1.25, 1.75], (4, 1)), atol=1e-5)
    np.testing.assert_allclose(resized[..., 2], np.tile(np.arange(4.0), (8, 1)), atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("rule", ["bicubic_antialiased", "bicubic"])
def test_positions_at_another_grid_are_those_of_torch(rule):
    """``bicubic_antialiased`` is the rule of open_clip, ``bicubic`` that of Hugging Face."""
    arrays = np.load(GOLDEN / "positions.npz")
    config = ViTConfig(patch_size=16, layers=1, width=4, heads=1, position_resize=rule)
    table = np.concatenate([np.full((1, 4), 9.0), arrays["grid"].reshape(36, 4)])
    params = {"class_embedding": np.zeros(4), "projection": np.zeros((4, 4))}
    variables = {"params": params | {"positional_embedding": jnp.asarray(table, jnp.float32)}}
    tower = VisionTransformer(config, resolution=96, embed_dim=4)

    def positions(*grid):
        return tower.apply(variables, *grid, method="_positions")

    sizes = [name.split("_")[-1] for name in arrays if name.startswith(f"{rule}_")]
    cells = [tuple(map(int, size.split("x"))) for size in sizes]
    # An image in the corner of a canvas of 10 x 13 patches has the positions of its own patches.
    alone, on_canvas = jax.jit(
        lambda cells_now: ([positions(*size) for size in cells], positions(10, 13, cells_now))
    )(jnp.array(cells))
    for (height, width), size, own, padded in zip(cells, sizes, alone, on_canvas, strict=True):
        np.testing.assert_array_equal(own[0, 0], 9.0)
        own = own[0, 1:].reshape(height, width, 4)
        padded = padded[1:].reshape(10, 13, 4)[:height, :width]
        for actual in (own, padded):
            np.testing.assert_allclose(actual, arrays[f"{rule}_{size}"], atol=1e-5, err_msg=size)


@pytest.mark.property
@pytest.mark.parametrize("height,width", [(64, 64), (64, 96)])
def test_the_region_of_the_whole_canvas_is_the_mean_of_the_dense_tokens_projected(
    vit, relative_error, height, width
):
    model, variables = vit
    features = image_features(model, variables, pixels(height, width))
    boxes = jnp.broadcast_to(jnp.array([0.0, 0.0, width, height]), (2, 1, 4))
    regions = encode_regions(model, variables, features, boxes)
    projection = np.asarray(variables["params"]["visual"]["projection"])
    expected = np.asarray(features.map).mean((1, 2)) @ projection
    assert relative_error(regions[:, 0], expected) < 1e-5


def test_the_embedding_of_the_image_is_the_class_token_of_the_ordinary_tower(vit):
    model, variables = vit
    x = pixels(64, 96)
    features = image_features(model, variables, x)
    encode = jax.jit(lambda v, x: model.apply(v, x, method=model.encode_image))
    np.testing.assert_array_equal(features.whole, encode(variables, x))
    assert features.map.shape == (2, 4, 6, 64)


@pytest.mark.property
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (16, 90)], ids=str)
def test_an_image_on_a_larger_canvas_has_the_same_features(vit, relative_error, size):
    """Its patches are those with at least one pixel of the image; the position grid is 4 x 4."""
    model, variables = vit
    rows, columns = (-(-side // 16) for side in size)
    image = pixels(*size)

    @jax.jit
    def features(x, sizes):
        return model.apply(variables, x, sizes, method=model.image_features)

    def on_canvas(height, width):
        more = ((0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0))
        return jnp.pad(image, more)

    # Without padding, the canvas ends at the last patch and all of it is image.
    alone = image_features(model, variables, on_canvas(16 * rows, 16 * columns))
    features_on_canvas = features(on_canvas(96, 112), jnp.tile(jnp.array([size]), (2, 1)))
    assert features_on_canvas.cells.tolist() == [[rows, columns]] * 2
    assert relative_error(features_on_canvas.whole, alone.whole) < 1e-5
    assert relative_error(features_on_canvas.map[:, :rows, :columns], alone.map) < 1e-5
    without = image_features(model, variables, on_canvas(96, 112))
    assert relative_error(without.whole, alone.whole) > 1e-2


def test_a_masked_row_has_finite_features(vit):
    model, variables = vit
    features = jax.jit(functools.partial(model.apply, method=model.image_features))(
        variables, pixels(64, 64), jnp.array([[64, 64], [0, 0]])
    )
    assert np.isfinite(features.whole).all() and np.isfinite(features.map).all()
