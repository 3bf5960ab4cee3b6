"""Localizers of detectron2 checkpoints: every variant is converted bit for bit or refused."""

import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from checkpoints import to_caffe2
from regionclip_jax.artifacts.localizer_checkpoint import (
    load_localizer,
    load_trunk,
    save_localizer,
)
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.conversion.convert_localizer import convert_localizer, convert_trunk

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"
NORM = ("weight", "bias", "running_mean", "running_var")
# docs/reference/checkpoints.md#c4-localizer and the two headings after it.
COUNTS = {"c4": 221, "fpn": 287, "jitter": 313}


def bare(tensors):
    return {name.removeprefix("offline_"): value for name, value in tensors.items()}


@pytest.fixture(scope="session")
def localizer_tensors(make_state_dict):
    """``localizer_tensors(variant)``: random weights by the names in a detector file."""

    def tensors(variant: str) -> dict[str, np.ndarray]:
        if variant in ("c4", "fpn"):
            return bare(make_state_dict(f"tiny_rpn_{variant}"))
        plain = bare(make_state_dict("tiny_rpn_fpn"))
        if variant == "clip":
            return as_clip_trunk(plain)
        result = {}
        for name, value in plain.items():
            if match := re.fullmatch(r"(backbone\.fpn_.*)\.(weight|bias)", name):
                if match[2] == "weight":
                    result[name] = value
                    norm = {f"{match[1]}.norm.{leaf}": np.full(16, 1.5, "f4") for leaf in NORM}
                    result |= norm | {f"{match[1]}.norm.num_batches_tracked": np.zeros((), "i8")}
            elif ".rpn_head.conv." in name:
                for number in "01":
                    result[name.replace("conv.", f"conv.conv{number}.")] = value
            else:
                result[name] = value
        return result

    return tensors


def as_clip_trunk(plain):
    """Return the tensors with the names and shapes of CLIP's ResNet of width 8."""
    rng = np.random.default_rng(0)
    result = {n: v for n, v in plain.items() if "bottom_up" not in n}

    def layer(conv, norm, *shape):
        result[f"backbone.bottom_up.{conv}.weight"] = rng.standard_normal(shape).astype("f4")
        for leaf in NORM:
            result[f"backbone.bottom_up.{norm}.{leaf}"] = rng.random(shape[0]).astype("f4")

    layer("conv1", "bn1", 4, 3, 3, 3)
    layer("conv2", "bn2", 4, 4, 3, 3)
    layer("conv3", "bn3", 8, 4, 3, 3)
    channels = 8
    for stage in range(4):
        at, planes = f"layer{stage + 1}.0.", 8 * 2**stage
        layer(at + "conv1", at + "bn1", planes, channels, 1, 1)
        layer(at + "conv2", at + "bn2", planes, planes, 3, 3)
        layer(at + "conv3", at + "bn3", 4 * planes, planes, 1, 1)
        layer(at + "downsample.0", at + "downsample.1", 4 * planes, channels, 1, 1)
        channels = 4 * planes
    return result


@pytest.mark.parametrize("variant", ["c4", "fpn", "jitter", "clip"])
def test_every_tensor_of_every_variant_is_used_bit_for_bit(
    tmp_path, localizer_tensors, write_safetensors, variant
):
    tensors = localizer_tensors(variant)
    file = write_safetensors(tensors)
    conversion = convert_localizer(file, tmp_path / "model")
    counted = [name for name in tensors if not name.endswith("num_batches_tracked")]
    assert conversion.num_used == len(counted) == COUNTS.get(variant, len(counted))
    assert conversion.unused == ()
    assert len(conversion.bookkeeping) == len(tensors) - len(counted)

    variables, card = load_localizer(tmp_path / "model")
    assert card == conversion.card and card.source["file"] == file.name
    leaves = flatten(variables)
    # The conversion only reorders values, so sorted values are equal.
    result = sorted(np.sort(x.ravel()).tobytes() for x in leaves.values())
    assert result == sorted(np.sort(tensors[name].ravel()).tobytes() for name in counted)
    deltas = tensors["proposal_generator.rpn_head.anchor_deltas.weight"]
    np.testing.assert_array_equal(leaves["params/head/deltas/kernel"], deltas.transpose(2, 3, 1, 0))
    if variant == "clip":
        name, path = "layer2.0.downsample.1.running_var", "layer2/block0/downsample_norm/var"
        trunk = "backbone.bottom_up."
    else:
        name, path = "res4.3.conv2.norm.running_var", "res4/block3/norm2/var"
        trunk = "backbone." if variant == "c4" else "backbone.bottom_up."
    np.testing.assert_array_equal(leaves[f"batch_stats/trunk/{path}"], tensors[trunk + name])


def test_the_variant_follows_from_names(tmp_path, localizer_tensors, write_safetensors):
    result = {}
    for variant in ("c4", "fpn", "jitter", "clip"):
        file = write_safetensors(localizer_tensors(variant), f"{variant}.safetensors")
        config = convert_localizer(file, tmp_path / variant).card.architecture
        result[variant] = (config.trunk, config.blocks, config.pyramid_norm, config.head_convs)
        assert (config.pyramid_channels is None) == (variant == "c4")
    assert result == {
        "c4": ("detectron", (3, 4, 6), False, 1),
        "fpn": ("detectron", (3, 4, 6, 3), False, 1),
        "jitter": ("detectron", (3, 4, 6, 3), True, 2),
        "clip": ("clip", (1, 1, 1, 1), False, 1),
    }


def test_a_fine_tuned_regionclip_gives_its_offline_localizer(
    tmp_path, localizer_tensors, make_state_dict, write_safetensors
):
    """Its ``backbone.`` is the recognition tower and is listed as unused."""
    offline = {f"offline_{name}": value for name, value in localizer_tensors("fpn").items()}
    tower = {"backbone.conv1.weight": np.ones((4, 3, 3, 3), "f4"), "pixel_mean": np.ones(3, "f4")}
    file = write_safetensors(offline | tower | {"roi_heads.box.weight": np.ones(2, "f4")})
    conversion = convert_localizer(file, tmp_path)
    assert conversion.num_used == 287
    assert set(conversion.unused) == {"backbone.conv1.weight", "roi_heads.box.weight"}
    assert conversion.bookkeeping == ("pixel_mean",)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "backbone.bottom_up.res3.1.conv2.weight",
            lambda x: x[:, :, :2],
            r"res3\.1\.conv2\.weight: expected shape \(16, 16, 3, 3\), found \(16, 16, 2, 3\)",
        ),
        ("backbone.fpn_output4.bias", None, r"fpn_output4\.bias: missing, expected shape \(16,\)"),
        (
            "proposal_generator.rpn_head.objectness_logits.weight",
            lambda x: np.repeat(x, 5, 0),
            r"objectness_logits\.weight: expected shape \(3, 16, 1, 1\), found \(15, 16, 1, 1\)",
        ),
        ("backbone.bottom_up.stem.conv1.weight", None, "'backbone.bottom_up.stem.conv1.weight'"),
        ("backbone.bottom_up.stem.conv1.weight", np.ravel, "expected 4 dimensions"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_key_and_shapes(
    tmp_path, localizer_tensors, write_safetensors, name, change, message
):
    tensors = localizer_tensors("fpn")
    value = tensors.pop(name)
    if change is not None:
        tensors[name] = change(value)
    with pytest.raises(CheckpointMismatch, match=message):
        convert_localizer(write_safetensors(tensors), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_without_a_localizer_is_refused(tmp_path, golden):
    with pytest.raises(CheckpointMismatch, match=r"pico_clip.*expected a localizer.*rpn_\*\.pth"):
        convert_localizer(golden / "pico_clip.pth", tmp_path)


def test_the_command_adds_a_localizer_to_a_model_and_refuses_it_as_one(
    tmp_path, pico_file, localizer_tensors, write_safetensors, capsys
):
    command = runpy.run_path(str(SCRIPT))["main"]
    file = str(write_safetensors(localizer_tensors("c4"), "rpn.safetensors"))
    clip = ["--source", str(pico_file())]
    assert command([*clip, "--localizer", file, "--output", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    assert "localizer, detectron2's ResNet, C4" in printed
    assert "221 used, 0 of bookkeeping, 0 others unused" in printed
    assert load_model(tmp_path / "model")[1].source["file"] == "pico_clip.pth"
    assert load_localizer(tmp_path / "model")[1].architecture.strides == (16,)

    assert command(["--source", file, "--output", str(tmp_path / "other")]) == 1
    assert "give it as --localizer" in capsys.readouterr().err


def test_an_unfinished_localizer_is_refused_with_the_remedy(
    tmp_path, localizer_tensors, write_safetensors
):
    convert_localizer(write_safetensors(localizer_tensors("c4")), tmp_path)
    (tmp_path / "localizer" / "card.json").unlink()
    with pytest.raises(CheckpointMismatch, match="--localizer"):
        load_localizer(tmp_path)


def test_an_imagenet_trunk_with_caffe2_names_is_converted(tmp_path, localizer_tensors):
    tensors = localizer_tensors("fpn")
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps({"blobs": to_caffe2(tensors)}, protocol=2))
    done = convert_trunk(file, tmp_path / "out")
    assert done.unused == ("fc1000_w", "conv1_b")
    variables, card = load_trunk(tmp_path / "out")
    assert card.source["file"] == "R-50.pkl" and card.architecture.pyramid_channels is None
    result = flatten(variables)
    for path, value in result.items():
        if path.endswith("/mean"):
            assert not value.any()
        if path.endswith("/var"):
            # The epsilon of the norm is included, so that the folded norm is exact.
            np.testing.assert_array_equal(value + np.float32(1e-5), 1)
    kernel = result["params/res3/block0/conv2/kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(kernel, tensors["backbone.bottom_up.res3.0.conv2.weight"])
    scale = result["params/stem/norm1/scale"]
    np.testing.assert_array_equal(scale, tensors["backbone.bottom_up.stem.conv1.norm.weight"])
    stored = sum("bottom_up" in name and "running" not in name for name in tensors)
    assert done.num_used == stored == sum("params" in path for path in result)


def test_the_resnet_of_torchvision_is_refused_as_a_trunk(tmp_path, write_safetensors):
    file = write_safetensors({"layer1.0.conv1.weight": np.zeros((4, 4, 1, 1), "f4")})
    with pytest.raises(CheckpointMismatch, match="R-50.pkl .torchvision's ResNet strides"):
        convert_trunk(file, tmp_path / "out")


def test_an_incomplete_imagenet_trunk_is_refused(tmp_path, localizer_tensors):
    half = to_caffe2(localizer_tensors("fpn"))
    del half["res3_0_branch2b_bn_s"]
    (tmp_path / "half.pkl").write_bytes(pickle.dumps(half, protocol=2))
    with pytest.raises(CheckpointMismatch, match=r"backbone.res3.0.conv2.norm.weight: missing"):
        convert_trunk(tmp_path / "half.pkl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_localizer_is_copied_from_another_model_directory(tmp_path, nano_localizer, capsys):
    card, variables = nano_localizer
    save_localizer(tmp_path / "trained", variables, card)
    main = runpy.run_path(str(SCRIPT))["main"]
    arguments = ["--localizer", str(tmp_path / "trained"), "--output", str(tmp_path / "model")]
    assert main(arguments) == 0
    assert f"copied from {tmp_path / 'trained'}" in capsys.readouterr().out
    copied, copied_card = load_localizer(tmp_path / "model")
    assert copied_card == card
    copied, variables = flatten(copied), flatten(variables)
    for path in variables:
        np.testing.assert_array_equal(copied[path], variables[path], err_msg=path)


@pytest.mark.parametrize("flag", ["--source", "--trunk", "--localizer"])
def test_a_directory_that_is_no_source_is_refused_in_one_line(tmp_path, capsys, flag):
    (tmp_path / "folder").mkdir()
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main([flag, str(tmp_path / "folder"), "--output", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'folder'}: expected a ") and "found" in error
    assert not (tmp_path / "model").exists()
