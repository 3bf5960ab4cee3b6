"""EVA-02's image tower: equality with timm's, padding, gradients, and its place in pretraining."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marks import on_accelerators
from parity import eva
from parity.comparison import assert_equal_to_reference
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.jobs import pretrain
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.eva_transformer import EVAConfig, EVATransformer, rotary_positions
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.towers import ImageTower
from regionclip_jax.settings import PretrainSettings
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.sharding.partition_rules import parameter_shardings

NAMES = ("EVA02-B-16", "EVA02-L-14", "EVA02-L-14-336")


@functools.partial(jax.jit, static_argnums=0)
def image_features(model, variables, pixels, sizes=None):
    return model.apply(variables, pixels, sizes, method=model.image_features)


def pixels(height, width):
    return jax.random.normal(jax.random.key(1), (2, height, width, 3))


@pytest.mark.parity
@on_accelerators
def test_the_tiny_tower_equals_timms_on_two_grids():
    """Measured: at most 1.3e-6, the logits."""
    assert_equal_to_reference(eva.compare_eva())


@pytest.mark.property
def test_an_image_on_a_larger_canvas_has_the_same_features(relative_error):
    """Its patches are those with at least one pixel of it; the grid of positions is 5 x 5."""
    size = (23, 61)
    config, variables = eva.tiny()
    model = CLIP(config)
    rows, columns = (-(-side // 10) for side in size)

    def on_canvas(height, width):
        more = ((0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0))
        return jnp.pad(pixels(*size), more)

    alone = image_features(model, variables, on_canvas(10 * rows, 10 * columns))
    # The second row of the batch is masked.
    padded = image_features(model, variables, on_canvas(80, 90), jnp.array([size, (0, 0)]))
    assert padded.cells.tolist() == [[rows, columns], [0, 0]]
    assert relative_error(padded.whole[0], alone.whole[0]) < 1e-5
    assert relative_error(padded.map[0, :rows, :columns], alone.map[0]) < 1e-5
    assert np.isfinite(padded.whole).all() and np.isfinite(padded.map).all()
    all_of_it = image_features(model, variables, on_canvas(80, 90), jnp.array([[80, 90]] * 2))
    assert relative_error(all_of_it.whole[0], alone.whole[0]) > 1e-2


def test_positions_of_rows_and_columns_span_the_reference_grid():
    """Heads of 8 channels have two angles for rows, two for columns: of frequencies 1 and 1/100."""
    config = EVAConfig(patch_size=4, layers=1, width=16, heads=2, mlp_width=8, rotary_grid=6)
    cos, sin = rotary_positions(config, 3, 4)
    rows, columns = np.meshgrid(np.arange(3) * 2, np.arange(4) * 1.5, indexing="ij")
    angles = np.stack([rows, rows / 100, columns, columns / 100], -1).reshape(1, 12, 4)
    # The class token is not turned.
    angles = np.concatenate([np.zeros((1, 1, 4)), angles], 1)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


def test_a_region_is_the_mean_of_its_projected_tokens(relative_error):
    config, variables = eva.tiny()
    model = CLIP(config)
    features = image_features(model, variables, pixels(30, 70))
    boxes = jnp.broadcast_to(jnp.array([0.0, 0.0, 70, 30]), (2, 1, 4))
    regions = jax.jit(lambda f, b: encode_regions(model, variables, f, b))(features, boxes)
    head = variables["params"]["visual"]["projection"]
    projected = np.asarray(features.map) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    assert relative_error(regions[:, 0], projected.mean((1, 2))) < 1e-5


def test_features_in_bfloat16_are_near(relative_error):
    """Measured: 0.012 of the largest number for the embedding, 0.013 for the map."""
    config, variables = eva.tiny()
    half, whole = (
        image_features(CLIP(config, dtype=dtype), variables, pixels(30, 70))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert half.map.dtype == half.whole.dtype == jnp.bfloat16
    assert relative_error(half.whole, whole.whole) < 0.05
    assert relative_error(half.map, whole.map) < 0.05


def gradients(remat):
    """Return gradients of a batch with a masked row."""
    config, variables = eva.tiny()
    model = CLIP(config, remat=remat)
    params = variables["params"]

    def loss(visual):
        features = model.apply(
            {"params": {**params, "visual": visual}},
            pixels(20, 30),
            jnp.array([[12, 30], [0, 0]]),
            method=model.image_features,
        )
        return jnp.square(features.whole).mean() + jnp.square(features.map[0]).mean()

    return jax.jit(jax.grad(loss))(params["visual"])


def test_every_parameter_has_a_finite_gradient():
    for path, leaf in jax.tree.leaves_with_path(gradients("all")):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", "block_inputs"])
def test_remat_policies_change_no_gradient(relative_error, remat):
    pairs = zip(jax.tree.leaves(gradients(remat)), jax.tree.leaves(gradients("all")), strict=True)
    for found, expected in pairs:
        assert relative_error(found, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_of_the_presets_are_sharded(name):
    """Four devices divide the 768 or 1,024 channels of the residual stream, but not 2,730."""
    shapes = abstract_variables(PRESETS[name])
    visual = parameter_shardings(shapes, make_mesh(fsdp=4))["params"]["visual"]
    for block in visual["blocks"].values():
        for module in (*block["attention"].values(), *block["mlp"].values()):
            if "kernel" in module:
                assert not module["kernel"].is_fully_replicated


def test_pretraining_traces_with_the_tower(monkeypatch):
    config, _ = eva.tiny()
    text = dataclasses.replace(config.text, vocab_size=49408, context_length=77)
    monkeypatch.setitem(PRESETS, "nano_eva", dataclasses.replace(config, text=text))
    settings = PretrainSettings()
    models = {
        part: dataclasses.replace(getattr(settings, part), preset="nano_eva", init_from="")
        for part in ("student", "teacher")
    }
    patterns = ("^text/", "^logit_")
    optimizer = dataclasses.replace(settings.optimizer, frozen_patterns=patterns)
    settings = dataclasses.replace(settings, optimizer=optimizer, **models)
    training = pretrain.build(settings, pretrain.Assumed(num_names=5))
    initial = training.abstract_state()
    # A run shards its state, so every parameter needs a rule.
    visual = parameter_shardings(initial, make_mesh(fsdp=2)).params["visual"]
    attention = visual["blocks"]["block0"]["attention"]
    assert attention["q_proj"]["kernel"].spec == jax.sharding.PartitionSpec(None, "fsdp")
    assert "bias" in attention["q_proj"] and "bias" not in attention["k_proj"]
    state, metrics = jax.eval_shape(
        training.make_step(make_mesh()),
        initial,
        training.abstract_frozen(),
        training.abstract_batch(),
    )
    assert state.params["visual"]["projection"]["kernel"].shape == (128, 24)
    assert metrics["loss"].shape == ()
    assert isinstance(EVATransformer(config.image, 50, 24), ImageTower)
