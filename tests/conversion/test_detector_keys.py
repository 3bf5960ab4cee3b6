"""Heads of a fine-tuned RegionCLIP: by the reference's names, in its layouts, or refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.artifacts.detector_heads import has_heads, load_heads
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.models.detector_heads import BoxHead, MaskHead


@pytest.fixture(scope="module")
def detector(clip_tensors) -> dict[str, np.ndarray]:
    """A small CLIP with random heads, by the names of RegionCLIP's detectors."""
    clip = clip_tensors("pico_clip")
    named = {}
    for name, value in clip.items():
        if name.startswith("visual."):
            named[f"backbone.{name.removeprefix('visual.')}"] = value
        elif name != "logit_scale":
            named[f"lang_encoder.{name}"] = value
    embed_dim = clip["visual.attnpool.c_proj.weight"].shape[0]
    layer4 = clip["visual.layer1.0.conv1.weight"].shape[0] * 32
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.standard_normal(shape).astype("f4")

    head, mask = "roi_heads.box_predictor.", "roi_heads.mask_head."
    return named | {
        head + "cls_score.weight": random(48, embed_dim),
        head + "cls_bg_score.weight": np.zeros((1, embed_dim), "f4"),
        head + "bbox_pred.weight": random(4, embed_dim),
        head + "bbox_pred.bias": random(4),
        mask + "deconv.weight": random(layer4, 256, 2, 2),
        mask + "deconv.bias": random(256),
        mask + "predictor.weight": random(1, 256, 1, 1),
        mask + "predictor.bias": random(1),
    }


def without(tensors, part):
    return {name: value for name, value in tensors.items() if part not in name}


def test_converted_heads_compute_the_formulas_of_torchs_layouts(
    tmp_path, detector, write_safetensors
):
    conversion = convert_checkpoint(write_safetensors(detector), tmp_path / "out")
    loaded, card = load_heads(tmp_path / "out")
    heads = loaded["params"]
    assert card.source["file"].endswith(".pth") and card.label == "box and mask heads"
    assert any("box and mask heads taken" in note for note in conversion.notes)
    # Class embeddings are made from names.
    assert set(conversion.unused) == {
        "roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_bg_score.weight"
    }  # fmt: skip

    rng = np.random.default_rng(1)
    weight, bias = (detector[f"roi_heads.box_predictor.bbox_pred.{x}"] for x in ("weight", "bias"))
    embeddings = rng.standard_normal((3, weight.shape[1])).astype("f4")
    found = BoxHead().apply({"params": heads["box_head"]}, jnp.asarray(embeddings))
    np.testing.assert_allclose(found, embeddings @ weight.T + bias, rtol=1e-4, atol=1e-5)

    mask = {k.split("mask_head.")[1]: v for k, v in detector.items() if "mask_head" in k}
    maps = rng.standard_normal((2, 3, 2, mask["deconv.weight"].shape[0])).astype("f4")
    found = MaskHead().apply({"params": heads["mask_head"]}, jnp.asarray(maps))
    assert found.shape == (2, 6, 4)
    for n, y, x in np.ndindex(2, 6, 4):
        cell = maps[n, y // 2, x // 2] @ mask["deconv.weight"][:, :, y % 2, x % 2]
        hidden = np.maximum(cell + mask["deconv.bias"], 0)
        expected = hidden @ mask["predictor.weight"].reshape(-1) + mask["predictor.bias"][0]
        np.testing.assert_allclose(found[n, y, x], expected, rtol=1e-3, atol=1e-3)


def test_a_detector_without_masks_and_a_plain_model_in_its_place(
    tmp_path, detector, write_safetensors
):
    boxes = without(detector, "mask_head")
    convert_checkpoint(write_safetensors(boxes, "boxes.safetensors"), tmp_path / "out")
    assert load_heads(tmp_path / "out")[1].architecture.mask_channels is None
    plain = write_safetensors(without(boxes, "roi_heads"), "plain.safetensors")
    convert_checkpoint(plain, tmp_path / "out")
    assert not has_heads(tmp_path / "out")


def test_a_teachers_file_has_no_heads(tmp_path, detector, write_safetensors):
    teacher = {name.replace("backbone.", "teacher_backbone."): v for name, v in detector.items()}
    file = write_safetensors(teacher | detector)
    convert_checkpoint(file, tmp_path / "out", tower="teacher")
    assert not has_heads(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("box_predictor.bbox_pred.weight", (48 * 4, 12), r"expected shape \(4, .*for every class"),
        ("mask_head.predictor.bias", None, r"mask_head.predictor.bias: .*no such tensor"),
    ],
)
def test_other_heads_are_refused_before_anything_is_written(
    tmp_path, detector, write_safetensors, name, shape, message
):
    changed = without(detector, name)
    if shape is not None:
        changed[f"roi_heads.{name}"] = np.zeros(shape, "f4")
    with pytest.raises(CheckpointMismatch, match=message):
        convert_checkpoint(write_safetensors(changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()
