"""Detectors on a feature pyramid of a frozen nano ViT: training, resume, evaluation, detection."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import regionclip_jax
import small_recipes
from regionclip_jax import settings as sections
from regionclip_jax.artifacts.detector_heads import has_pyramid, load_heads
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.artifacts.results import read_results
from regionclip_jax.assembly import models as assembly
from regionclip_jax.commands import detect, doctor, embed_regions
from regionclip_jax.jobs import evaluate, train_detector
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.models.vit_pyramid import PyramidConfig
from regionclip_jax.settings import ConfigError, as_plain

TOWERS = {
    "pyramid_vit": ViTConfig(16, layers=5, width=16, heads=2),
    "pyramid_eva": EVAConfig(16, layers=5, width=16, heads=2, mlp_width=20),
}
FROZEN = ("^visual/", "^text/", "^logit_scale", "background_embedding$")


@pytest.fixture(autouse=True, scope="module")
def nano_pyramids():
    """Presets of both towers, and heads of few channels."""
    usual = small_recipes.NANO["nano_vit"]
    with pytest.MonkeyPatch.context() as patch:
        for name, image in TOWERS.items():
            for table in (small_recipes.NANO, PRESETS):
                patch.setitem(table, name, dataclasses.replace(usual, image=image))
        narrow = functools.partial(PyramidConfig, channels=8)
        patch.setattr(assembly, "PyramidConfig", narrow)
        yield


@pytest.fixture(scope="module")
def make_config(boxes_directory, evaluation, optimizer, run_section, model_section,
                model_directory):  # fmt: skip
    """``make_config(preset)``: settings of two steps."""
    boxes = sections.BoxDataSettings(
        source="array_record",
        path=str(boxes_directory),
        classes="scenes_base",
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((64, 64),),
        jitter=(0.5, 1.5),
        max_boxes=3,
        group_by_canvas=False,
        num_threads=1,
    )
    detector = sections.DetectorObjective(
        proposals=sections.ProposalSettings(20, 50, 0.7),
        pyramid_blocks=(1, 2, 3, 4),
        samples_per_image=8,
        temperature=0.02,
        focal_gamma=0.0,
        templates="plain",
        regions_per_chunk=None,
    )
    scores = sections.DetectionSettings(
        temperature=1 / 75,
        objectness="none",
        score_threshold=0.0,
        base_fusion=0.1,
        novel_fusion=0.8,
        regions_per_chunk=None,
    )

    def make(preset: str) -> sections.TrainDetectorSettings:
        return sections.TrainDetectorSettings(
            matmul_precision="highest",
            model=model_section(preset, model_directory(preset)),
            data=boxes,
            detector=detector,
            optimizer=dataclasses.replace(
                optimizer, kind="adamw", learning_rate=1e-3, clip_global_norm=1.0,
                frozen_patterns=FROZEN,
            ),
            run=run_section,
            evaluation=dataclasses.replace(
                evaluation,
                regions="localizer",
                proposals=sections.ProposalSettings(20, 50, 0.7),
                detection=scores,
            ),
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def detector(make_config, tmp_path_factory) -> tuple:
    """Model directory and working directory of a trained detector on a ViT."""
    workdir = tmp_path_factory.mktemp("pyramid")
    return train_detector.run(make_config("pyramid_vit"), workdir), workdir


@pytest.mark.slow
def test_only_the_heads_are_trained_and_the_directory_is_evaluated(
    detector, model_directory, capsys
):
    directory, workdir = detector
    start, trained = (
        flatten(load_model(d)[0]) for d in (model_directory("pyramid_vit"), directory)
    )
    assert start.keys() == trained.keys()
    for path, value in start.items():
        np.testing.assert_array_equal(trained[path], value, err_msg=path)
    heads, card = load_heads(directory)
    assert set(heads["params"]) == set(heads["batch_stats"]) == {"pyramid_heads"}
    assert card.architecture.pyramid == PyramidConfig((1, 2, 3, 4), 16, 8)
    own = heads["params"]["pyramid_heads"]
    assert np.abs(own["background_embedding"]).max() > 0 and 49 < own["logit_factor"] < 51
    assert has_pyramid(directory) and not (directory / "localizer").exists()
    results = read_results(workdir / "results.json")
    assert {"AP50_novel", "AP50_base", "AP50_all"} <= set(results["detector"])
    assert results["detector"]["recall@20"] is not None
    saw = results["details"]["saw"]["detector"]["boxes"]
    assert saw == "proposals of the detector's pyramid, moved by the detector's box head"
    doctor.examine(directory, write=False)
    assert "feature pyramid with its heads" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_detector_equals_one_trained_without_a_stop(
    make_config, detector, changed, tmp_path
):
    quiet = changed(make_config("pyramid_vit"), {"evaluation.path": "", "run.num_steps": 1})
    train_detector.run(quiet, tmp_path)
    resumed = train_detector.run(changed(quiet, {"run.num_steps": 2}), tmp_path)
    whole, parts = (flatten(load_heads(d)[0]) for d in (detector[0], resumed))
    for path, value in whole.items():
        np.testing.assert_array_equal(parts[path], value, err_msg=path)


@pytest.mark.slow
def test_the_public_api_detects_proposes_and_classifies_given_boxes(detector):
    directory, workdir = detector
    model = regionclip_jax.load(directory, short_side=64, max_long_side=64)
    details = read_results(workdir / "results.json")["details"]
    assert as_plain(model.scores) == details["scores"]["detector"]
    assert model.has_localizer and model.scores.detection.novel_fusion == 0.8
    image = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    proposed = model.propose(image)
    assert 0 < len(proposed) <= 20
    found = model.detect(image)
    assert len(found.scores) and set(found.names) <= set(model.vocabulary().names)
    boxes = np.array([[4.0, 4, 40, 50]], np.float32)
    names = [model.vocabulary().names[0], "a word of the user's"]
    given = model.detect(image, names, boxes=boxes, score_threshold=0.0)
    np.testing.assert_allclose(given.boxes, np.tile(boxes, (2, 1)), atol=1e-3)
    with pytest.raises(ValueError, match="embed_from 'crops': heads on a pyramid"):
        model.detect(image, embed_from="crops")


@pytest.mark.slow
def test_the_command_detects_with_a_detector_on_a_pyramid(detector, tmp_path):
    """It has no localizer of its own kind, and needs none."""
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "image.png")
    arguments = ["--images", tmp_path / "image.png", "--output", tmp_path / "found"]
    sizes = ["--short_side", 64, "--max_long_side", 64, "--score", 0]
    arguments = ["--checkpoint", detector[0], *arguments, *sizes]
    assert detect.main([str(argument) for argument in arguments]) == 0
    line = json.loads((tmp_path / "found" / "detections.jsonl").read_text())
    assert line["detections"]


@pytest.mark.slow
def test_the_command_embeds_regions_of_a_detector_on_a_pyramid(detector, tmp_path):
    """Proposals and detections are its heads', features the frozen tower's."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    model = regionclip_jax.load(detector[0], short_side=64, max_long_side=64)
    sizes = ["--short_side", "64", "--max_long_side", "64"]

    def embed(name: str, *flags: str) -> dict:
        arguments = ["--checkpoint", str(detector[0]), "--images", str(tmp_path / "image.png")]
        assert (
            embed_regions.main([*arguments, "--output", str(tmp_path / name), *sizes, *flags]) == 0
        )
        arrays = dict(np.load(tmp_path / name / "image.png.npz"))
        assert len(arrays["boxes"]) > 0
        expected = model.encode_regions(pixels, arrays["boxes"])
        np.testing.assert_array_equal(arrays["features"], expected)
        return arrays

    proposed = model.propose(pixels, num_proposals=9)
    arrays = embed("proposals", "--num_proposals", "9")
    np.testing.assert_array_equal(arrays["boxes"], proposed.boxes)
    np.testing.assert_array_equal(arrays["logits"], proposed.logits)
    found = model.detect(pixels, ["cat", "dog"])
    arrays = embed("detections", "--classes", "cat, dog")
    np.testing.assert_array_equal(arrays["boxes"], found.boxes)
    np.testing.assert_array_equal(arrays["scores"], found.scores)
    assert arrays["probabilities"].shape == (len(found), 2)
    assert arrays["names"].tolist() == ["cat", "dog"]


@pytest.mark.slow
def test_heads_of_another_tower_are_refused(detector, model_directory, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model_directory("nano_vit"), other)
    shutil.copytree(detector[0] / "heads", other / "heads")
    with pytest.raises(CheckpointMismatch, match="has 1 blocks with maps, 16 channels"):
        regionclip_jax.load(other)


def test_fusion_without_a_pyramid_is_refused(make_config, model_directory, tmp_path):
    settings = sections.EvaluateSettings(
        models={"model": model_directory("nano_vit")},
        evaluation=dataclasses.replace(make_config("pyramid_vit").evaluation, regions="windows"),
    )
    with pytest.raises(ConfigError, match="has no pyramid; set both to None"):
        evaluate.run(settings, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"detector.pyramid_blocks": (1, 2, 3)}, "expected four ascending numbers of blocks"),
        ({"detector.pyramid_blocks": (1, 2, 3, 5)}, "which has 5 blocks with maps"),
        ({"detector.localizer": "x"}, "a pyramid has a proposal network of its own"),
        ({"detector.regions_per_chunk": 4}, "4 with a pyramid, whose heads have"),
        ({"model.preset": "nano_resnet"}, "an image tower of the family 'resnet'"),
        ({"optimizer.frozen_patterns": FROZEN[1:]}, r"a frozen tower; add '\^visual/'"),
        (
            {"detector.pyramid_blocks": (), "detector.temperature": 0.1},
            "whose tower is trained cannot be fused",
        ),
    ],
)
def test_contradicting_settings_are_refused(make_config, changed, values, message):
    with pytest.raises(ConfigError, match=message):
        train_detector.build(changed(make_config("pyramid_vit"), values)).abstract_state()


@pytest.mark.slow
def test_a_detector_with_masks_on_eva_writes_masks_and_their_ap(
    make_config, changed, masked_folder, tmp_path
):
    dataset = {"source": "coco_folder", "path": masked_folder, "split": "train"}
    changes = {f"{part}.{k}": v for part in ("data", "evaluation") for k, v in dataset.items()}
    more = {
        "data.classes": "all",
        "detector.mask_size": 8,
        "evaluation.class_split": "none",
        "evaluation.detection.max_detections": 5,
    }
    config = changed(make_config("pyramid_eva"), changes | more)
    directory = train_detector.run(config, tmp_path / "run")
    heads, card = load_heads(directory)
    assert "mask_head" in heads["params"]["pyramid_heads"]
    assert card.architecture.mask_channels == 8
    metrics = read_results(tmp_path / "run" / "results.json")["detector"]
    assert {"mask_AP", "mask_AP50"} <= set(metrics)
