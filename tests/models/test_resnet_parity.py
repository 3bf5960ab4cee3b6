"""CLIP's ResNet tower against the reference, stage by stage."""

import functools

import jax
import jax.numpy as jnp
import pytest

from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.normalization import normalize_for_clip
from regionclip_jax.ops.roi_align import roi_align

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def to_nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnums=0)
def stages(model, variables, pixels):
    """Output of each stage, NCHW, layer4 on the whole map."""

    def run(model, x):
        outputs = {}
        for name in STAGES:
            outputs[name] = x = getattr(model.visual, name)(x)
        return outputs

    outputs = model.apply(variables, pixels, method=run)
    return {name: x.transpose(0, 3, 1, 2) for name, x in outputs.items()}


@functools.partial(jax.jit, static_argnums=0)
def embeddings(model, variables, pixels, rois):
    """The picture, its regions' crops averaged, and its regions."""
    whole = model.apply(variables, pixels, method=model.encode_image)
    features = model.apply(variables, pixels, method=model.image_features)
    crops = roi_align(features.map, rois[None], model.crop_size, 1 / model.stride)
    regions = encode_regions(model, variables, features, rois[None])
    return whole, crops[0].mean((1, 2)), regions[0]


def canvas(arrays):
    image = jnp.asarray(arrays["image_uint8"].transpose(1, 2, 0)[None])
    return normalize_for_clip(image, jnp.array([image.shape[1:3]]))


@pytest.fixture(scope="module")
def tiny(reference_tensors, to_variables):
    config = PRESETS["tiny"]
    return CLIP(config), to_variables(reference_tensors("tiny_pretrain"), config)


@pytest.mark.parity
def test_normalised_pixels_equal_the_references(golden, relative_error):
    """Measured: 2.3e-7."""
    arrays = golden("backbone_tiny")
    pixels = canvas(arrays).transpose(0, 3, 1, 2)[:, :, ::5, ::3]
    assert relative_error(pixels, arrays["input"]) < 1e-6


@pytest.mark.parity
def test_every_stage_of_the_tiny_tower_equals_the_references(golden, tiny, relative_error):
    """A picture of the training size. Stored: stem to layer3 at [:, ::3, ::5, ::3], layer4 whole.

    Measured: 2.9e-7 to 4.9e-7.
    """
    arrays = golden("backbone_tiny")
    found = stages(*tiny, canvas(arrays))
    for name in STAGES[:-1]:
        assert relative_error(found[name][:, ::3, ::5, ::3], arrays[name]) < 1e-5, name
    assert relative_error(found["layer4"], arrays["layer4"]) < 1e-5


@pytest.mark.parity
def test_every_stage_on_a_small_canvas_equals_the_references(golden, tiny, relative_error):
    """96 x 128, where layer4 pools an odd row. Stored: stem to layer2 at [:, ::3, ::2, ::3].

    Measured: 2.4e-7 to 6.2e-7.
    """
    arrays = golden("backbone_tiny")
    found = stages(*tiny, to_nhwc(arrays["small_input"]))
    for name in STAGES:
        part = found[name][:, ::3, ::2, ::3] if name in STAGES[:3] else found[name]
        assert relative_error(part, arrays[f"small_{name}"]) < 1e-5, name


@pytest.mark.parity
def test_embeddings_of_the_picture_and_of_regions_equal_the_references(
    golden, tiny, relative_error
):
    """Measured: 8.8e-7, crops 4.9e-7, regions 1.0e-6."""
    arrays = golden("backbone_tiny")
    whole, crop_means, regions = embeddings(*tiny, canvas(arrays), arrays["rois"])
    assert relative_error(whole, arrays["attnpool"]) < 1e-5
    assert relative_error(crop_means, arrays["roi_pooled_mean"]) < 1e-5
    assert relative_error(regions, arrays["roi_feats"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("preset,arch", [("RN50", "rn50"), ("RN50x4", "rn50x4")])
def test_towers_of_full_size_equal_the_references(
    large_golden, large_golden_folder, reference_tensors, to_variables, relative_error, preset, arch
):
    """Measured: RN50 at most 1.8e-6, RN50x4 at most 2.1e-6, both at the regions."""
    arrays = large_golden(f"backbone_{arch}")
    model = CLIP(PRESETS[preset])
    tensors = reference_tensors(f"{arch}_detector_gt", root=large_golden_folder)
    variables = to_variables(tensors, model.config)
    found = stages(model, variables, to_nhwc(arrays["input"]))
    for name in STAGES:
        assert relative_error(found[name].mean((2, 3)), arrays[f"{name}_mean_c"]) < 1e-4, name
        assert relative_error(found[name][:, ::17, ::7, ::5], arrays[f"{name}_sample"]) < 1e-4, name
    assert relative_error(found["layer4"], arrays["layer4"]) < 1e-4
    small = stages(model, variables, to_nhwc(arrays["small_input"]))
    for name in STAGES:
        if f"small_{name}" in arrays:
            assert relative_error(small[name], arrays[f"small_{name}"]) < 1e-4, name
    whole, crop_means, regions = embeddings(
        model, variables, to_nhwc(arrays["input"]), arrays["rois"]
    )
    assert relative_error(whole, arrays["attnpool"]) < 1e-4
    assert relative_error(crop_means, arrays["roi_pooled_mean"]) < 1e-4
    assert relative_error(regions, arrays["roi_feats"]) < 1e-4
