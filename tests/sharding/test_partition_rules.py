"""Every parameter of every architecture has a rule, and the rules shard large parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from regionclip_jax.artifacts.detector_heads import HeadsConfig, init_heads
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.vit_pyramid import PyramidConfig
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.sharding.partition_rules import parameter_shardings


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(fsdp=2)


def sharded_fraction(shapes, shardings):
    """Return the fraction of the parameters on one device."""
    fractions = [
        np.prod(sharding.shard_shape(leaf.shape)) / np.prod(leaf.shape)
        for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    ]
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
    return np.dot(fractions, sizes) / np.sum(sizes)


@pytest.mark.parametrize("name", ["RN50", "RN50x4", "ViT-B/16", "ViT-L/14@336", "tiny", "scenes"])
def test_two_devices_have_about_half_of_the_parameters_each(mesh, name):
    shapes = abstract_variables(PRESETS[name])
    shardings = parameter_shardings(shapes, mesh)
    assert sharded_fraction(shapes, shardings) < 0.51
    specs = {path: s.spec for path, s in flatten(shardings).items()}
    assert specs["params/text/token_embedding"] == PartitionSpec("fsdp", None)
    assert specs["params/logit_scale"] == PartitionSpec()


def test_localizers_heads_and_optimizer_states_are_covered(mesh):
    import optax

    shapes = abstract_localizer(LocalizerConfig(blocks=(3, 4, 6, 3), pyramid_channels=256))
    assert sharded_fraction(shapes, parameter_shardings(shapes, mesh)) < 0.51
    heads = jax.eval_shape(lambda: init_heads(HeadsConfig(1024, 2048), jax.random.key(0)))
    assert sharded_fraction(heads, parameter_shardings(heads, mesh)) < 0.51
    pyramid = HeadsConfig(512, 256, PyramidConfig((3, 5, 7, 11), 768))
    heads = jax.eval_shape(lambda: init_heads(pyramid, jax.random.key(0)))
    assert sharded_fraction(heads, parameter_shardings(heads, mesh)) < 0.51
    state = jax.eval_shape(optax.adamw(1e-3).init, abstract_variables(PRESETS["scenes"])["params"])
    assert sharded_fraction(state, parameter_shardings(state, mesh)) < 0.52


def test_tensors_are_replicated_if_the_fsdp_axis_is_one_or_does_not_divide_them(mesh):
    shapes = abstract_variables(PRESETS["scenes"])
    for sharding in jax.tree.leaves(parameter_shardings(shapes, make_mesh())):
        assert sharding.is_fully_replicated
    odd = {"params": {"head": {"kernel": jnp.zeros((1, 1, 4, 15))}}}
    (sharding,) = jax.tree.leaves(parameter_shardings(odd, mesh))
    assert sharding.is_fully_replicated


def test_a_parameter_without_a_rule_is_named(mesh):
    with pytest.raises(ValueError, match=r"params/new/gate \(3,\): no rule.*add a rule"):
        parameter_shardings({"params": {"new": {"gate": jnp.zeros(3)}}}, mesh)
    with pytest.raises(ValueError, match="head/kernel"):
        parameter_shardings({"head": {"kernel": jnp.zeros(3)}}, mesh)
