"""Localizer and then detector, trained for a few steps on synthetic scenes."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import regionclip_jax
from regionclip_jax import settings as sections
from regionclip_jax.artifacts.detector_heads import load_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_trunk
from regionclip_jax.artifacts.model_card import CheckpointMismatch, LocalizerCard
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.artifacts.results import read_detections, read_results
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES, SHAPES
from regionclip_jax.jobs import train_detector, train_localizer
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import LocalizerConfig, init_localizer
from regionclip_jax.models.presets import LOCALIZER_PRESETS
from regionclip_jax.settings import ConfigError, as_plain

NANO = {
    "nano_pyramid": LocalizerConfig(
        trunk="clip", blocks=(1, 1, 1, 1), stem_width=8, pyramid_channels=8
    ),
    "nano_c4": LocalizerConfig(blocks=(1, 1, 1), stem_width=8, bottleneck_width=4, features=8),
}


@pytest.fixture(autouse=True, scope="module")
def nano_localizers():
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in NANO.items():
            patch.setitem(LOCALIZER_PRESETS, name, preset)
        yield


@pytest.fixture(scope="module")
def boxes(boxes_directory) -> sections.BoxDataSettings:
    return sections.BoxDataSettings(
        source="array_record",
        path=str(boxes_directory),
        classes="scenes_base",
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((64, 64),),
        max_boxes=3,
        repeat_threshold=0.3,
        group_by_canvas=False,
        num_threads=1,
        max_skipped_fraction=0.0,
        min_skipped_records=1,
    )


@pytest.fixture(scope="module")
def localizer_config(boxes, evaluation, optimizer, run_section, model_directory):
    images = {field.name for field in dataclasses.fields(sections.EvaluatedImages)}
    return sections.TrainLocalizerSettings(
        matmul_precision="highest",
        localizer=sections.LocalizerModelSettings(
            preset="nano_pyramid", init_from=model_directory("nano_resnet"), dtype="float32"
        ),
        data=boxes,
        anchors=sections.LocalizerObjective(anchors_per_image=16),
        optimizer=dataclasses.replace(optimizer, frozen_patterns=("norm",), learning_rate=1e-3),
        run=run_section,
        evaluation=sections.RecallSettings(
            proposals=evaluation.proposals, **{name: getattr(evaluation, name) for name in images}
        ),
    )


@pytest.fixture(scope="module")
def localizer(localizer_config, tmp_path_factory) -> tuple:
    """Model directory and working directory of a trained localizer."""
    workdir = tmp_path_factory.mktemp("localizer")
    return train_localizer.run(localizer_config, workdir), workdir


@pytest.fixture(scope="module")
def detector_config(boxes, evaluation, optimizer, run_section, model_section, model_directory,
                    localizer):  # fmt: skip
    return sections.TrainDetectorSettings(
        matmul_precision="highest",
        model=model_section("nano_resnet", model_directory("nano_resnet")),
        data=boxes,
        detector=sections.DetectorObjective(
            localizer=str(localizer[0]),
            proposals=sections.ProposalSettings(20, 50, 0.7),
            samples_per_image=8,
            temperature=0.1,
            templates="plain",
            regions_per_chunk=4,
        ),
        optimizer=dataclasses.replace(
            optimizer, frozen_patterns=("visual/stem/", "norm", "^text/", "^logit_scale")
        ),
        run=run_section,
        evaluation=dataclasses.replace(
            evaluation,
            regions="localizer",
            proposals=sections.ProposalSettings(20, 100),
            detection=dataclasses.replace(evaluation.detection, nms=sections.NmsSettings()),
        ),
    )


@pytest.fixture(scope="module")
def detector(detector_config, tmp_path_factory) -> tuple:
    workdir = tmp_path_factory.mktemp("detector")
    return train_detector.run(detector_config, workdir), workdir


def params_of(directory) -> dict[str, np.ndarray]:
    localizer, _ = load_localizer(directory)
    return flatten(localizer)


def test_a_localizer_starts_from_the_clip_trunk_and_keeps_its_frozen_norms(
    localizer, model_directory
):
    directory, workdir = localizer
    params = params_of(directory)
    clip = flatten(load_model(model_directory("nano_resnet"))[0])
    trunk = {path: value for path, value in params.items() if path.startswith("params/trunk/")}
    assert len(trunk) > 20
    for path, value in trunk.items():
        start = clip[path.replace("/trunk/", "/visual/")]
        assert np.array_equal(value, start) == ("norm" in path), path
    results = read_results(workdir / "results.json")
    metrics = results["localizer"]
    counts = results["details"]["counts"]["localizer"]["recall"]
    assert counts["images"] == 20 and set(counts["groups"]) == {"novel", "base", "all"}
    for name in ("AR@50", "recall@50", "AR@50_novel", "AR@50_base"):
        assert 0 <= metrics[name] <= 100


@pytest.mark.slow  # The test of the detector below resumes the same loop in every run.
def test_a_resumed_localizer_equals_one_trained_without_a_stop(
    localizer_config, localizer, changed, tmp_path
):
    quiet = changed(localizer_config, {"evaluation.path": "", "run.num_steps": 1})
    train_localizer.run(quiet, tmp_path)
    resumed = train_localizer.run(changed(quiet, {"run.num_steps": 2}), tmp_path)
    whole = params_of(localizer[0])
    for path, value in params_of(resumed).items():
        np.testing.assert_array_equal(value, whole[path], err_msg=path)


def test_a_localizer_from_scratch_updates_its_batch_statistics(localizer_config, changed, tmp_path):
    config = changed(
        localizer_config,
        {
            "localizer.preset": "nano_c4",
            "localizer.init_from": "",
            "localizer.norm": "live",
            "optimizer.frozen_patterns": (),
            "evaluation.path": "",
        },
    )
    params = params_of(train_localizer.run(config, tmp_path))
    means = [value for path, value in params.items() if path.endswith("norm1/mean")]
    assert means and all(np.abs(mean).max() > 0 for mean in means)


def test_a_localizer_of_one_level_starts_from_an_imagenet_trunk(localizer_config, tmp_path):
    """The localizer takes only its stages from the trunk; its head is random."""
    whole = dataclasses.replace(NANO["nano_c4"], blocks=(1, 1, 1, 1))
    initial = init_localizer(whole, jax.random.key(7))
    trunk = {name: tree["trunk"] for name, tree in initial.items()}
    save_trunk(tmp_path, trunk, LocalizerCard(whole, {"file": "R-50.pkl"}))
    section = dataclasses.replace(
        localizer_config.localizer, init_from=str(tmp_path), init_part="trunk"
    )
    started = flatten(train_localizer.initial_localizer(section, NANO["nano_c4"], 0))
    expected = flatten(initial)
    stages = {path.split("/")[2] for path in started if "/trunk/" in path}
    assert stages == {"stem", "res2", "res3", "res4"}
    for path, value in started.items():
        if "/trunk/" in path:
            np.testing.assert_array_equal(value, expected[path])
    assert "params/head/objectness/kernel" in started


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"localizer.preset": "nano_c4"}, "expected a localizer in localizer/, found none"),
        ({"localizer.init_part": "all"}, "expected a localizer in localizer/, found none"),
    ],
)
def test_initial_weights_without_a_localizer_are_refused(
    localizer_config, changed, tmp_path, values, message
):
    with pytest.raises(CheckpointMismatch, match=message):
        train_localizer.run(changed(localizer_config, values), tmp_path)


def test_canvases_that_are_no_multiple_of_the_pyramid_stride_are_refused(
    localizer_config, changed, tmp_path
):
    config = changed(localizer_config, {"data.canvas_sizes": ((64, 80),)})
    with pytest.raises(ConfigError, match=r"data\.canvas_sizes: \(64, 80\): .*multiples of 32"):
        train_localizer.run(config, tmp_path)


def test_a_detector_is_a_complete_model_directory(detector, model_directory, localizer):
    directory, workdir = detector
    variables, card = load_model(directory)
    start = flatten(load_model(model_directory("nano_resnet"))[0])
    for path, value in flatten(variables).items():
        moved = path.startswith("params/visual/") and not any(
            part in path for part in ("stem", "norm", "k_proj/bias")
        )
        assert np.array_equal(value, start[path]) != moved, path
    heads, heads_card = load_heads(directory)
    assert set(heads["params"]) == {"box_head"} and heads_card.source["run"] == "train_detector"
    assert heads_card.source["classes"] == [name for name in SHAPES if name in BASE_SHAPES]
    copied, original = params_of(directory), params_of(localizer[0])
    assert all(np.array_equal(copied[path], original[path]) for path in original)
    # Novel classes are evaluated with embeddings that the training did not use.
    trained = Vocabulary.load(directory / "vocabulary.npz")
    assert trained.names == tuple(heads_card.source["classes"])
    # Detection by the public API has the settings of the detector's own evaluation.
    metrics = read_results(workdir / "results.json")
    model = regionclip_jax.load(directory)
    assert model.vocabulary().names == trained.names
    assert model.scores.proposals == sections.ProposalSettings(20, 100)
    assert as_plain(model.scores) == metrics["details"]["scores"]["detector"]
    assert {"AP50_novel", "AP50_base", "AP50_all"} <= set(metrics["detector"])
    assert "moved by the detector's box head" in metrics["details"]["saw"]["detector"]["boxes"]
    assert (workdir / "detections.png").is_file()


def test_evaluations_are_written_at_the_step_of_the_training(detector, localizer, read_events):
    events, results = read_events(detector[1]), read_results(detector[1] / "results.json")
    ap = results["detector"]["AP50_all"]
    assert events["detector/AP50_all"] == [(2, pytest.approx(ap, abs=1e-3))]
    assert [step for step, _ in events["learning_rate"]] == [1, 2]
    found = read_results(localizer[1] / "results.json")["localizer"]
    name = next(name for name, value in found.items() if value is not None)
    # tensorboardX replaces the @ of recall@100.
    (written,) = read_events(localizer[1])[f"localizer/{name.replace('@', '_')}"]
    assert written == (2, pytest.approx(found[name], abs=1e-3))


def test_a_resumed_detector_equals_one_trained_without_a_stop(
    detector_config, detector, changed, tmp_path
):
    quiet = changed(detector_config, {"evaluation.path": "", "run.num_steps": 1})
    train_detector.run(quiet, tmp_path)
    resumed = train_detector.run(changed(quiet, {"run.num_steps": 2}), tmp_path)
    whole, parts = (load_model(d)[0] for d in (detector[0], resumed))
    heads = [load_heads(d)[0] for d in (detector[0], resumed)]
    for one, other in ((whole, parts), heads):
        other = flatten(other)
        for path, value in flatten(one).items():
            np.testing.assert_array_equal(other[path], value, err_msg=path)


def test_a_random_image_tower_keeps_the_text_tower_and_moves_its_statistics(
    detector_config, changed, model_directory, tmp_path
):
    config = changed(
        detector_config,
        {
            "detector.image_tower": "random",
            "detector.regions_per_chunk": None,
            "optimizer.frozen_patterns": ("^text/", "^logit_scale"),
            "evaluation.path": "",
        },
    )
    trained = flatten(load_model(train_detector.run(config, tmp_path))[0])
    start = flatten(load_model(model_directory("nano_resnet"))[0])
    for path, value in trained.items():
        same = "/text/" in path or path.endswith("logit_scale")
        if same:
            np.testing.assert_array_equal(value, start[path], err_msg=path)
        if path.startswith("batch_stats/"):
            assert not np.array_equal(value, start[path]), path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda names: names[:-1],
            r"has \d+ names, the training data \d+ classes; at row \d+: not",
        ),
        (lambda names: [names[1], names[0], *names[2:]], "at row 0: 'square' there, 'circle' in"),
    ],
)
def test_embeddings_of_other_classes_or_in_another_order_are_refused(
    detector_config, detector, changed, tmp_path, change, message
):
    known = Vocabulary.load(detector[1] / "vocabulary.npz")
    names = change(list(known.names))
    rows = known.embeddings[: len(names)]
    path = tmp_path / "wrong.npz"
    Vocabulary(tuple(names), rows, known.templates, known.encoder).save(path)
    config = changed(detector_config, {"detector.vocabulary": str(path)})
    with pytest.raises(ConfigError, match=message):
        train_detector.run(config, tmp_path / "run")


def test_embeddings_of_the_classes_in_another_spelling_are_accepted(
    detector_config, detector, changed, tmp_path
):
    known = Vocabulary.load(detector[1] / "vocabulary.npz")
    path = tmp_path / "other_spelling.npz"
    spelled = tuple(name.upper() for name in known.names)
    Vocabulary(spelled, known.embeddings, known.templates, known.encoder).save(path)
    config = changed(detector_config, {"detector.vocabulary": str(path)})
    variables, card = load_model(config.model.init_from)
    given = train_detector._class_embeddings(
        config, known.names, CLIP(card.architecture), variables, tmp_path
    )
    np.testing.assert_array_equal(given.embeddings, known.embeddings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"detector.image_tower": "imagenet"}, "image_tower: 'imagenet' is none of"),
        ({"detector.image_tower": "random"}, "regions_per_chunk: 4 with a random image tower"),
        ({"detector.mask_size": 8}, "array_record has no masks"),
        (
            {"data.classes": "coco_base"},
            r"data\.classes: 'coco_base': 'coco_48_17' names \['apple'",
        ),
        ({"data.classes": "nowhere.txt"}, r"data\.classes: 'nowhere\.txt' is neither a file nor"),
        ({"data.max_boxes": 1}, "more than max_boxes 1: raise it"),
        ({"optimizer.frozen_patterns": ("norm",)}, r"leave parameters of the text tower to train"),
    ],
)
def test_invalid_recipes_are_refused_before_the_first_step(
    detector_config, changed, tmp_path, values, message
):
    with pytest.raises(ConfigError, match=message):
        train_detector.run(changed(detector_config, values), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation.path": "nowhere"}, r"evaluation\.path: 'nowhere' does not exist"),
        ({"evaluation.class_split": "coco_48_17"}, r"evaluation\.class_split: 'coco_48_17' names"),
    ],
)
def test_an_evaluation_that_cannot_run_is_refused_before_the_training(
    detector_config, localizer_config, changed, tmp_path, values, message
):
    for job, config in ((train_detector, detector_config), (train_localizer, localizer_config)):
        with pytest.raises(ConfigError, match=message):
            job.run(changed(config, values), tmp_path)
    for key in ("evaluation.localizer", "evaluation.vocabulary"):
        with pytest.raises(CheckpointMismatch, match="nowhere"):
            train_detector.run(changed(detector_config, {key: "nowhere"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_detector_with_a_mask_head_writes_masks_and_their_ap(
    detector_config, changed, masked_folder, tmp_path
):
    dataset = {"source": "coco_folder", "path": masked_folder, "split": "train"}
    changes = {f"{part}.{k}": v for part in ("data", "evaluation") for k, v in dataset.items()}
    config = changed(
        detector_config,
        changes
        | {
            "data.classes": "all",
            "data.repeat_threshold": None,
            "detector.mask_size": 8,
            "evaluation.class_split": "none",
            "evaluation.detection.max_detections": 5,
        },
    )
    workdir = tmp_path / "run"
    directory = train_detector.run(config, workdir)
    heads, card = load_heads(directory)
    assert (
        set(heads["params"]) == {"box_head", "mask_head"}
        and card.architecture.mask_channels == 8 * 32
    )
    metrics = read_results(workdir / "results.json")["detector"]
    assert {"mask_AP", "mask_AP50"} <= set(metrics)
    predictions = read_detections(workdir / "detections_detector.json")
    assert predictions and all(d["segmentation"]["size"] == [64, 64] for d in predictions)


def test_an_annotation_file_is_trained_on_and_evaluated_by_its_path(
    detector_config, changed, masked_folder, tmp_path
):
    """Classes with boxes in the training file are base classes; the others are novel."""
    content = json.loads((Path(masked_folder) / "annotations/instances_train.json").read_text())
    content["categories"].append({"id": 5, "name": "odd_thing"})
    (tmp_path / "mine.json").write_text(json.dumps(content))
    content["annotations"][0]["category_id"] = 5
    (tmp_path / "test.json").write_text(json.dumps(content))
    dataset = {"source": "coco_folder", "path": f"{masked_folder}/train", "split": ""}
    changes = {f"{part}.{k}": v for part in ("data", "evaluation") for k, v in dataset.items()}
    config = changed(
        detector_config,
        changes
        | {
            "data.annotations": str(tmp_path / "mine.json"),
            "data.classes": "with_boxes",
            "evaluation.annotations": str(tmp_path / "test.json"),
            "evaluation.class_split": "trained",
        },
    )
    directory = train_detector.run(config, tmp_path / "run")
    assert load_heads(directory)[1].source["classes"] == ["square"]
    metrics = read_results(tmp_path / "run" / "results.json")["detector"]
    assert {"AP50_novel", "AP50_base", "AP50_all"} <= set(metrics)
    predictions = read_detections(tmp_path / "run" / "detections_detector.json")
    assert {detection["category_id"] for detection in predictions} == {1, 5}
