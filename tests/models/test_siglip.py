"""SigLIP's towers apart from their numbers, which ``tests/conversion/test_siglip.py`` compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, unflatten
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.siglip_image import SigLIPImageConfig, SigLIPImageTower
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.models.towers import CLIPConfig, ImageTower
from regionclip_jax.ops.normalization import real_pixels
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.sharding.partition_rules import parameter_shardings
from regionclip_jax.structures import Preprocessing

CONFIG = CLIPConfig(
    SigLIPImageConfig(patch_size=8, layers=1, width=24, heads=3, mlp_width=20),
    SigLIPTextConfig(vocab_size=30, context_length=6, width=16, heads=2, layers=1),
    Preprocessing(32),
    embed_dim=24,
    logit_bias=True,
)
MODEL = CLIP(CONFIG)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    shapes = flatten(abstract_variables(CONFIG))
    return unflatten(
        {
            path: jnp.asarray(rng.standard_normal(leaf.shape) / 3, jnp.float32)
            for path, leaf in shapes.items()
        }
    )


def test_padding_of_a_canvas_has_no_effect_and_a_masked_row_is_finite(variables):
    """The map, the whole image and a region of 26 x 38 pixels, alone and on a larger canvas."""
    rng = np.random.default_rng(1)
    pixels = jnp.asarray(rng.standard_normal((1, 32, 40, 3)), jnp.float32)
    sizes = jnp.array([[26, 38], [0, 0]])
    boxes = jnp.array([[[3.0, 2.0, 35.0, 20.0]]])

    @jax.jit
    def outputs(pixels):
        alone = jnp.where(real_pixels(sizes[:1], 32, 40)[..., None], pixels, 0)
        padded = jnp.pad(alone, ((0, 1), (0, 24), (0, 16), (0, 0)))
        results = []
        for image, size in ((alone, sizes[:1]), (padded, sizes)):
            features = MODEL.apply(variables, image, size, method=MODEL.image_features)
            tiled = jnp.tile(boxes, (len(size), 1, 1))
            regions = encode_regions(MODEL, variables, features, tiled)
            results.append((features.map, features.whole, regions))
        return results

    (map_, whole, region), padded = outputs(pixels)
    assert map_.shape == (1, 4, 5, 24) and region.shape == (1, 1, 24)
    np.testing.assert_allclose(padded[0][:1, :4, :5], map_, atol=1e-5)
    np.testing.assert_allclose(padded[1][:1], whole, atol=1e-5)
    np.testing.assert_allclose(padded[2][:1], region, atol=1e-5)
    assert all(np.isfinite(part).all() for part in padded)


def test_computing_in_bfloat16_keeps_parameters_and_gives_bfloat16(variables):
    model = CLIP(CONFIG, dtype=jnp.bfloat16)
    pixels = jax.ShapeDtypeStruct((1, 32, 40, 3), jnp.float32)
    features = jax.eval_shape(
        lambda pixels: model.apply(variables, pixels, method=model.image_features), pixels
    )
    assert features.map.dtype == features.whole.dtype == jnp.bfloat16
    texts = jax.eval_shape(
        lambda tokens: model.apply(variables, tokens, method=model.encode_text),
        jax.ShapeDtypeStruct((2, 6), jnp.int32),
    )
    assert texts.dtype == jnp.bfloat16


def test_every_parameter_has_a_rule_of_sharding():
    shardings = parameter_shardings(abstract_variables(CONFIG), make_mesh(fsdp=2))
    head = shardings["params"]["visual"]["head"]
    assert head["probe"].spec == jax.sharding.PartitionSpec()
    assert head["attention"]["q_proj"]["kernel"].spec == jax.sharding.PartitionSpec(None, "fsdp")


def test_texts_that_are_not_padded_to_the_context_are_refused(variables):
    assert CONFIG.text.num_read(np.zeros((2, 6), np.int32)) == 6
    with pytest.raises(ValueError, match="texts of all 6 tokens, found 5; pad them"):
        jax.eval_shape(
            lambda: MODEL.apply(variables, jnp.zeros((1, 5), jnp.int32), method=MODEL.encode_text)
        )


def test_embeddings_of_another_width_than_the_tower_are_refused():
    tower = SigLIPImageTower(CONFIG.image, 32, embed_dim=16)
    assert isinstance(tower, ImageTower)
    with pytest.raises(ValueError, match="image tower's width 24, found embed_dim 16"):
        jax.eval_shape(
            lambda: tower.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), method=tower.features)
        )
