"""A remat policy changes memory and time, and no number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.models.clip import CLIP, encode_regions, init_variables
from regionclip_jax.models.localizer import Localizer, LocalizerConfig
from regionclip_jax.models.modified_resnet import Stage
from regionclip_jax.models.transformer_blocks import BlockStack
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.steps.train_state import model_variables, split_parameters

LESS = ("products", "block_inputs")
# XLA's CPU compiler removes the barriers between recomputed and first values, merges both, and so
# stores everything. Without that pass it compiles as for GPUs and TPUs. Level 0 compiles faster.
AS_TOLD = {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_backend_optimization_level": 0}
BOXES = jnp.array([[[4, 4, 40, 60], [0, 0, 64, 64], [20, 8, 50, 30]]] * 2, jnp.float32)
SIZES = jnp.array([[64, 64], [48, 60]])


@pytest.fixture(scope="module")
def pixels():
    return jax.random.normal(jax.random.key(0), (2, 64, 64, 3))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 12), 0, 600)


def value_and_gradient(loss, variables, model):
    """Return value and gradient of ``loss(variables, model) -> (value, auxiliary)``."""

    def of_params(params):
        return loss({**variables, "params": params}, model)

    gradient = jax.jit(jax.value_and_grad(of_params, has_aux=True), compiler_options=AS_TOLD)
    return gradient(variables["params"])


def assert_same(found, expected):
    """Values and gradients to the rounding of fp32: 1e-4 of a tensor's largest number.

    The bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
    """
    found, expected = jax.device_get((found, expected))
    flat = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, one), other in flat:
        assert np.isfinite(other).all(), path
        if "['k_proj']['bias']" not in jax.tree_util.keystr(path):
            atol = 1e-4 * float(np.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=str(path))


@pytest.mark.property
def test_a_resnet_gives_the_same_numbers_with_every_policy(nano_configs, nano_variables, pixels):
    """Frozen norms; the localizers below have live ones and the policy of products."""
    variables = nano_variables("resnet")

    def loss(variables, model):
        maps = model.apply(
            variables,
            pixels,
            method=lambda clip, x: clip.crop_features(clip.visual.features(x, SIZES).map),
        )
        return jnp.square(maps).mean(), maps

    config = nano_configs["resnet"]
    expected = value_and_gradient(loss, variables, CLIP(config))
    model = CLIP(config, remat="block_inputs")
    assert_same(value_and_gradient(loss, variables, model), expected)


@pytest.mark.property
def test_transformers_give_the_same_numbers_with_every_policy(
    nano_configs, nano_variables, pixels, tokens
):
    """Embeddings of whole images, the dense map of the ViT, and texts."""
    variables = nano_variables("vit")

    def loss(variables, model):
        features = model.apply(variables, pixels, SIZES, method=model.image_features)
        texts = model.apply(variables, tokens, method=model.encode_text)
        value = jnp.square(features.map).mean() + jnp.square(features.whole @ texts.T).mean()
        return value, features.whole

    expected = value_and_gradient(loss, variables, CLIP(nano_configs["vit"]))
    for kept in LESS:
        model = CLIP(nano_configs["vit"], remat=kept)
        assert_same(value_and_gradient(loss, variables, model), expected)


@pytest.mark.property
@pytest.mark.parametrize(("trunk", "kept"), [("detectron", "products"), ("clip", "block_inputs")])
def test_a_localizer_gives_the_same_numbers_with_every_policy(trunk, kept):
    """Live norms; their new statistics are compared as well."""
    config = LocalizerConfig(
        trunk=trunk, blocks=(1, 1), stem_width=4, bottleneck_width=4, features=16
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32),
        abstract_localizer(config),
    )
    images = jnp.asarray(rng.integers(0, 255, (2, 64, 64, 3)), jnp.uint8)

    def loss(variables, localizer):
        outputs, updated = localizer.apply(variables, images, SIZES, mutable=["batch_stats"])
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(outputs)), updated

    expected = value_and_gradient(loss, variables, Localizer(config, frozen_norm=False))
    localizer = Localizer(config, frozen_norm=False, remat=kept)
    assert_same(value_and_gradient(loss, variables, localizer), expected)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_parameters_keep_their_names(nano_configs, pixels, tokens, name):
    def shapes(kept):
        model = CLIP(nano_configs[name], remat=kept)
        return flatten(jax.eval_shape(lambda: model.init(jax.random.key(0), pixels, tokens)))

    assert shapes("all") == shapes("block_inputs") == shapes("products")


def made_again(function, *arguments) -> int:
    """Return the number of parts of the function that its backward pass recomputes."""

    def count(jaxpr) -> int:
        return sum(
            bool(equation.params.get("differentiated"))
            + sum(count(inner) for inner in jaxprs_in_params(equation.params))
            for equation in jaxpr.eqns
        )

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_only_trained_blocks_are_recomputed(nano_configs, tokens, pixels):
    """With stem and layer1 frozen, as in the paper, the blocks of layer2 and layer3 alone.

    Those of layer4 run in chunks, whose one loop is made again as a whole already.
    """
    config = nano_configs["resnet"]
    config = dataclasses.replace(
        config, image=dataclasses.replace(config.image, layers=(2, 2, 1, 1))
    )
    variables = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    text_and_norms = ("norm", "^text/", "^logit_scale")

    def pieces(kept, *patterns):
        model = CLIP(config, remat=kept)
        trained, frozen = split_parameters(variables["params"], (*text_and_norms, *patterns))

        def loss(params, frozen, batch_stats):
            mine = model_variables(params, frozen, batch_stats)
            features = model.apply(mine, pixels, method=model.image_features)
            texts = model.apply(mine, tokens, method=model.encode_text)
            regions = encode_regions(model, mine, features, BOXES, regions_per_chunk=2)
            return (regions @ texts.T).sum()

        return made_again(jax.grad(loss), trained, frozen, variables["batch_stats"])

    assert pieces("all") == 1
    assert pieces("block_inputs", "visual/stem/", "visual/layer1/") == 1 + 3
    assert pieces("block_inputs") == 1 + 3 + 3


def test_blocks_of_texts_are_recomputed_where_they_are_trained(nano_configs, tokens):
    config = nano_configs["vit"]
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, layers=3))
    variables = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    for kept, count in (("all", 0), ("products", 3), ("block_inputs", 3)):
        model = CLIP(config, remat=kept)
        encode = functools.partial(model.apply, tokens=tokens, method=model.encode_text)
        assert made_again(jax.grad(lambda v, f=encode: f(v).sum()), variables) == count


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (
            lambda kept: BlockStack(ViTConfig(1, layers=4, width=32, heads=2), jnp.float32, kept),
            (8, 48, 32),
        ),
        (lambda kept: Stage(8, 4, 1, True, jnp.float32, kept), (2, 32, 32, 32)),
    ],
    ids=["transformer", "resnet"],
)
def test_a_policy_stores_less_in_memory(make, shape):
    """Temporary memory of four blocks' gradients, as the compiler plans it."""

    def temporary(kept):
        blocks = make(kept)
        variables = jax.eval_shape(lambda: blocks.init(jax.random.key(0), jnp.zeros(shape)))
        gradient = jax.jit(jax.grad(lambda v, x: blocks.apply(v, x).sum()))
        lowered = gradient.lower(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
        return lowered.compile(AS_TOLD).memory_analysis().temp_size_in_bytes

    everything, products, inputs = map(temporary, ("all", *LESS))
    assert inputs < 0.6 * everything and inputs < products < 0.9 * everything
