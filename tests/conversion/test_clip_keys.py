import dataclasses
import math

import jax
import numpy as np
import pytest

from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten
from regionclip_jax.conversion.architecture import infer_config
from regionclip_jax.conversion.clip_keys import origin
from regionclip_jax.conversion.layouts import Layout, Origin, source_shape, to_parameter
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.vision_transformer import ViTConfig

# Numbers of tensors of the image tower: docs/reference/checkpoints.md#rn50-inventory for RN50; the
# others follow from their depths.
NUM_VISUAL = {"RN50": 284, "RN101": 284 + 17 * 15, "ViT-B/32": 8 + 12 * 12, "ViT-L/14": 8 + 24 * 12}
NUM_TEXT = 149

# Families whose parameters have OpenAI's names.
OPENAI_NAMES = (ResNetConfig, ViTConfig)
# Presets of OpenAI's. A state dict has no number of heads, and these have width / 64.
OPENAI = {
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "tiny",
    "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336",
}  # fmt: skip


def source_shapes(config) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of OpenAI's state dict, computed from this package's tree."""
    shapes = {}
    for path, leaf in flatten(abstract_variables(config)).items():
        where = origin(path.partition("/")[2], len(leaf.shape))
        shape = source_shape(leaf.shape, where)
        assert shapes.setdefault(where.name, shape) == shape
    return shapes


@pytest.mark.property
@pytest.mark.parametrize("name", sorted(OPENAI))
def test_every_preset_of_openai_maps_to_its_names_and_back(name):
    config = PRESETS[name]
    shapes = source_shapes(config)
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert infer_config(tensors, "file") == config
    num_visual = sum(key.startswith("visual.") for key in shapes)
    if name in NUM_VISUAL:
        assert num_visual == NUM_VISUAL[name]
    if config.text.layers == 12:
        assert len(shapes) - num_visual == NUM_TEXT + 1
    # Both sides have the same number of values, so none is lost or used twice.
    ours = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_variables(config)))
    assert ours == sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.property
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, preset in PRESETS.items()
        if name not in OPENAI and isinstance(preset.image, OPENAI_NAMES)
    ],
)
def test_the_sizes_of_every_other_preset_are_inferred(name):
    """Two blocks of each tower stand for all."""
    config = PRESETS[name]
    parts = {"text": dataclasses.replace(config.text, layers=2)}
    if isinstance(config.image, ViTConfig):
        parts["image"] = dataclasses.replace(config.image, layers=2)
    config = dataclasses.replace(config, **parts)
    tensors = {
        key: np.broadcast_to(np.float32(0), shape) for key, shape in source_shapes(config).items()
    }
    found = infer_config(tensors, "file")
    image, text = (
        dataclasses.replace(tower, heads=right.heads)
        for tower, right in ((found.image, config.image), (found.text, config.text))
    )
    if isinstance(image, ViTConfig):
        image = dataclasses.replace(image, activation=config.image.activation)
    text = dataclasses.replace(text, activation=config.text.activation)
    pixels = dataclasses.replace(config.preprocessing, resolution=found.preprocessing.resolution)
    assert pixels == config.preprocessing
    assert config == dataclasses.replace(found, image=image, text=text, preprocessing=pixels)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["nano_clip", "vit_tiny"])
def test_names_and_shapes_equal_those_of_the_reference(make_state_dict, name):
    reference = make_state_dict(name)
    reference = {k: v.shape for k, v in reference.items() if "num_batches_tracked" not in k}
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in reference.items()}
    assert source_shapes(infer_config(tensors, name)) == reference


def test_a_path_without_a_rule_is_named():
    with pytest.raises(KeyError, match="visual/new_module/kernel"):
        origin("visual/new_module/kernel", 2)


def test_a_convolution_kernel_is_converted_to_height_width_in_out():
    tensor = np.arange(2 * 3 * 5 * 7, dtype=np.float16).reshape(2, 3, 5, 7)
    kernel = to_parameter(tensor, Origin("conv", Layout.CONVOLUTION))
    assert kernel.shape == (5, 7, 3, 2) and kernel.dtype == np.float32
    assert kernel.flags.c_contiguous and kernel[4, 1, 2, 0] == tensor[0, 2, 4, 1]


def test_thirds_of_a_packed_projection_are_queries_keys_and_values():
    packed = np.arange(6 * 2, dtype=np.float32).reshape(6, 2)
    for third in range(3):
        kernel = to_parameter(packed, Origin("in_proj", Layout.LINEAR, third))
        np.testing.assert_array_equal(kernel, packed[2 * third : 2 * third + 2].T)
