"""Exported weights: converted again, they are the same numbers under the same names."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import checkpoints
from parity.golden import make_state_dict
from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.detector_heads import load_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model
from regionclip_jax.commands.export import main as export
from regionclip_jax.conversion import (
    detector_keys,
    eva_keys,
    open_clip_configuration,
    siglip_configuration,
    siglip_keys,
)
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.choices import NO_CHOICE
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.conversion.convert_localizer import convert_localizer
from regionclip_jax.conversion.json_object import JsonObject
from regionclip_jax.conversion.torch_archive import write_torch_archive
from regionclip_jax.export.weights import export_weights
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.siglip_presets import SIGLIP_PRESETS

GOLDEN = Path(__file__).parents[1] / "golden"


def require_same_tensors(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("tower", "output_format", "file"),
    [
        pytest.param("resnet", "openclip", "open_clip_model.safetensors", marks=pytest.mark.slow),
        pytest.param("vit", "openclip", "open_clip_model.safetensors", marks=pytest.mark.slow),
        ("vit", "safetensors", "model.safetensors"),
        ("resnet", "regionclip_pth", "model.pth"),
    ],
)
def test_an_exported_model_converts_to_the_same_numbers(
    tower, output_format, file, small_configs, save_random, tmp_path
):
    config = small_configs[tower]
    if output_format == "safetensors":
        image = dataclasses.replace(config.image, position_resize="bicubic", mlp_width=100)
        config = dataclasses.replace(config, image=image)
    directory, output = save_random(config), tmp_path / "exported"
    path = output / file
    exported = export_weights(
        directory, output_format, path if output_format == "regionclip_pth" else output
    )
    assert {written.name for written in exported.files} == {p.name for p in output.iterdir()}
    conversion = convert_checkpoint(path, tmp_path / "again")
    assert conversion.unused == ()
    (found, card), (expected, own) = load_model(tmp_path / "again"), load_model(directory)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert card.architecture == own.architecture == config


def test_the_names_of_eva_and_siglip_are_those_of_open_clip():
    tensors = make_state_dict("eva_tiny")
    renamed, _ = eva_keys.rename(tensors, "student")
    require_same_tensors(eva_keys.to_open_clip(renamed), tensors)
    tensors = read_tensors(GOLDEN / "siglip_open_clip.safetensors")
    renamed, _ = siglip_keys.rename(tensors, "student")
    require_same_tensors(siglip_keys.to_open_clip(renamed), tensors)


def test_a_siglip_exports_to_the_files_of_transformers(tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    configurations = json.loads((GOLDEN / "siglip_configurations.json").read_text())
    for name, content in configurations["huggingface"].items():
        (published / name).write_text(json.dumps(content))
    shutil.copy(GOLDEN / "siglip2_tokenizer.json", published / "tokenizer.json")
    source = published / "model.safetensors"
    shutil.copy(GOLDEN / "siglip_huggingface.safetensors", source)
    convert_checkpoint(source, tmp_path / "model")
    export_weights(tmp_path / "model", "safetensors", tmp_path / "exported")
    found = read_tensors(tmp_path / "exported" / "model.safetensors")
    require_same_tensors(found, read_tensors(source))
    tokenizer = (tmp_path / "exported" / "tokenizer.json").read_bytes()
    assert tokenizer == (published / "tokenizer.json").read_bytes()
    convert_checkpoint(tmp_path / "exported" / "model.safetensors", tmp_path / "again")
    found, expected = (load_card(tmp_path / name).architecture for name in ("again", "model"))
    assert found == expected
    with pytest.raises(CheckpointMismatch, match="no trunk of timm is"):
        export_weights(tmp_path / "model", "openclip", tmp_path / "open_clip")


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in SIGLIP_PRESETS])
def test_open_clips_configuration_of_every_preset_is_read_as_that_preset(name, tmp_path):
    config = PRESETS[name]
    path = tmp_path / open_clip_configuration.FILE_NAME
    path.write_text(json.dumps(open_clip_configuration.to_json(config)))
    found = open_clip_configuration.read(JsonObject.read(path))
    assert found.completed(config, image=True, text=True) == config
    assert found.preprocessing == config.preprocessing and found.embed_dim == config.embed_dim


def test_open_clips_siglips_are_those_with_timms_activation(tmp_path):
    exact, path = 0, tmp_path / open_clip_configuration.FILE_NAME
    weights = path.with_name("open_clip_model.safetensors")
    for name, config in SIGLIP_PRESETS.items():
        other = dataclasses.replace(config.image, activation="gelu")
        exact_config = dataclasses.replace(config, image=other)
        for one in (config, exact_config):
            try:
                content = siglip_configuration.to_open_clip_json(one)
            except CheckpointMismatch as error:
                assert "the activation" in str(error)
                continue
            path.write_text(json.dumps(content))
            completed = siglip_configuration.complete(one, weights, {}, NO_CHOICE).config
            # open_clip has its own rule for positions at other grids.
            image = dataclasses.replace(one.image, position_resize="bicubic_antialiased")
            assert completed == dataclasses.replace(one, image=image), name
            exact += one is exact_config
    # B and L (to 384 pixels) of patches of 16, SO400M of patches of 14, of both families.
    assert exact == 9 + 9


@pytest.mark.slow
def test_a_detector_exports_to_the_names_of_the_reference(tmp_path):
    """``tiny_finetune`` is the state dict of the reference's own detector."""
    reference = make_state_dict("tiny_finetune")
    source = checkpoints.write_safetensors(tmp_path / "reference.pth", reference)
    text = checkpoints.write_safetensors(tmp_path / "clip.pth", make_state_dict("tiny_pretrain"))
    convert_checkpoint(source, tmp_path / "model", text_from=text)
    convert_localizer(source, tmp_path / "model")
    export_weights(tmp_path / "model", "regionclip_pth", tmp_path / "exported.pth")
    tensors = read_tensors(tmp_path / "exported.pth")
    extra = {name for name in tensors if name.startswith("lang_encoder.")} | {"logit_scale"}
    scores = {name for name in reference if "cls_" in name}
    require_same_tensors(
        {name: x for name, x in tensors.items() if name not in extra},
        {name: x for name, x in reference.items() if name not in scores},
    )
    convert_checkpoint(tmp_path / "exported.pth", tmp_path / "again")
    convert_localizer(tmp_path / "exported.pth", tmp_path / "again")
    for load in (load_model, load_localizer, load_heads):
        found, expected = (load(tmp_path / name)[0] for name in ("again", "model"))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_heads_export_to_the_tensors_they_are_taken_from():
    rng = np.random.default_rng(0)
    shapes = {
        "box_predictor.bbox_pred.weight": (4, 8),
        "box_predictor.bbox_pred.bias": (4,),
        "mask_head.deconv.weight": (6, 256, 2, 2),
        "mask_head.deconv.bias": (256,),
        "mask_head.predictor.weight": (1, 256, 1, 1),
        "mask_head.predictor.bias": (1,),
    }
    tensors = {
        f"roi_heads.{name}": rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }
    heads, _, used = detector_keys.take_heads(tensors, 8, 6, "file")
    assert used == tensors.keys()
    require_same_tensors(detector_keys.from_heads(heads), tensors)


def test_an_archive_of_torch_holds_scalars_and_aligned_numbers(tmp_path):
    tensors = {
        "scale": np.float32(4.25).reshape(()),
        "flipped": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "small.pth"
    write_torch_archive(path, tensors)
    require_same_tensors(read_tensors(path), tensors)
    numbers = np.ascontiguousarray(tensors["flipped"]).tobytes()
    assert path.read_bytes().index(numbers) % 64 == 0


@pytest.mark.parametrize(
    ("tower", "changes", "output_format", "message"),
    [
        ("resnet", {}, "safetensors", "kind 'resnet'.*choose --format openclip or regionclip_pth"),
        ("vit", {}, "regionclip_pth", "found the kind 'vit'; choose --format openclip or safetens"),
        ("vit", {"logit_bias": True}, "safetensors", "logit_bias = True; choose --format openclip"),
        ("resnet", {"heads": 2}, "regionclip_pth", "heads of the text tower.*--format openclip"),
        ("vit", {"activation": "gelu"}, "openclip", "QuickGELU in one of two towers"),
    ],
)
def test_a_format_without_the_architecture_is_refused(
    tower, changes, output_format, message, nano_configs, save_random, tmp_path
):
    config = nano_configs[tower]
    if "heads" in changes:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, **changes))
    elif "activation" in changes:
        config = dataclasses.replace(config, image=dataclasses.replace(config.image, **changes))
    else:
        config = dataclasses.replace(config, **changes)
    directory = save_random(config)
    with pytest.raises(CheckpointMismatch, match=message):
        export_weights(directory, output_format, tmp_path / "exported.pth")
    assert not (tmp_path / "exported.pth").exists()


def test_the_command_exports_and_names_the_error(nano_configs, save_random, tmp_path, capsys):
    directory = save_random(nano_configs["vit"])
    arguments = [str(directory), "--format", "openclip", "--output"]
    assert export([*arguments, str(tmp_path / "exported")]) == 0
    out = capsys.readouterr().out
    assert "open_clip_model.safetensors" in out and "tensors: 50" in out
    assert export([*arguments, str(directory)]) == 1
    assert "expected another directory than that of the model" in capsys.readouterr().err
