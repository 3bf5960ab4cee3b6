"""Arguments that the detection experiment on synthetic scenes passes to its jobs, all mocked."""

import dataclasses

import pytest

from answers import no_errors
from configs import pretrain as configs
from regionclip_jax import recipes
from regionclip_jax.artifacts.results import read_results
from regionclip_jax.data.scenes.vocabulary import CONCEPTS
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import DetectionRecord
from regionclip_jax.evaluation.counts import Coverage, count
from regionclip_jax.jobs import scenes_detection as job
from regionclip_jax.jobs import scenes_experiment
from regionclip_jax.jobs.evaluate import Evaluation
from regionclip_jax.settings import ScenesDetectionSettings

COVERAGE = Coverage({"recall": count([[0], []], {"all": {0}})}, {"skipped_records": 0})
AP50 = {
    "teacher": 10.0,
    "regionclip": 12.0,
    "detector_random": 20.0,
    "detector_CLIP": 30.0,
    "detector_RegionCLIP": 40.0,
}


@pytest.fixture(scope="module")
def config() -> ScenesDetectionSettings:
    """The recipe ``scenes_detection`` with a few small images."""
    recipe = configs.scenes_detection()
    recipe.seed, recipe.scenes.seed = 23, 5
    recipe.scenes.update(side=48, num_closeups=3, num_scenes=4, num_test=2)
    recipe.num_labelled = 5
    return recipes.resolve(ScenesDetectionSettings, recipe)


@pytest.fixture
def mocked_jobs(monkeypatch):
    """``mocked_jobs(config, workdir)``: the metrics of the experiment and the calls of its jobs."""
    calls = []

    def training(name):
        def run(config, workdir, *more):
            calls.append((name, config, workdir, *more))
            return workdir / "model"

        return run

    def evaluate_model(directory, section, dtype, *, vocabulary_path, detections_path):
        calls.append(("evaluate", section, directory))
        metrics = {"AP50_novel": AP50[directory.parent.name]}
        return Evaluation(metrics, {}, [], no_errors(), [], {}, None, {})

    def measure(localizer, section, dtype):
        calls.append(("recall", section, localizer))
        return {"recall@100": 80.0}, COVERAGE

    for name in ("train_clip", "train_localizer", "pretrain"):
        monkeypatch.setattr(getattr(scenes_experiment, name), "run", training(name))
    monkeypatch.setattr(job.train_detector, "run", training("train_detector"))
    monkeypatch.setattr(job.evaluate, "evaluate_model", evaluate_model)
    monkeypatch.setattr(job.proposal_recall, "measure", measure)

    def run(config, workdir):
        calls.clear()
        return job.run(config, workdir), list(calls)

    return run


def test_every_training_starts_from_the_intended_weights(mocked_jobs, config, tmp_path):
    _, calls = mocked_jobs(config, tmp_path)
    trainings = [call for call in calls if call[0] not in ("evaluate", "recall")]
    assert [call[0] for call in trainings] == [
        "train_clip", "train_localizer", "pretrain", *["train_detector"] * 3
    ]  # fmt: skip
    teacher, localizer, regionclip, *detectors = trainings
    models = {
        name: str(tmp_path / name / "model") for name in ("teacher", "localizer", "regionclip")
    }
    assert teacher[1].model.init_from == ""
    assert localizer[1].localizer.init_from == models["teacher"]
    assert regionclip[1].student.init_from == models["teacher"] == regionclip[1].teacher.init_from
    assert regionclip[1].regions.localizer == models["localizer"]
    assert regionclip[3] == CONCEPTS
    starts = [(call[1].model.init_from, call[1].detector.image_tower) for call in detectors]
    assert starts == [
        (models["teacher"], "random"),
        (models["teacher"], "pretrained"),
        (models["regionclip"], "pretrained"),
    ]
    assert {call[1].detector.localizer for call in detectors} == {models["localizer"]}
    assert {call[1].run.seed for call in trainings} == {23}
    # The three recipes differ only in the initial weights and in the frozen parameters.
    _, clip, region = (call[1] for call in detectors)
    assert dataclasses.replace(clip, model=region.model) == region
    random = dataclasses.replace(detectors[0][1], detector=clip.detector, optimizer=clip.optimizer)
    assert random == clip


def test_novel_boxes_and_held_out_scenes_are_only_evaluated(mocked_jobs, config, tmp_path):
    metrics, calls = mocked_jobs(config, tmp_path)
    sets = {(call[0], call[1].data.path) for call in calls if call[0][:5] in ("train", "pretr")}
    assert sets == {
        ("train_clip", str(tmp_path / "data" / "whole_images")),
        ("pretrain", str(tmp_path / "data" / "scenes")),
        ("train_localizer", str(tmp_path / "data" / "labelled")),
        ("train_detector", str(tmp_path / "data" / "labelled")),
    }
    boxes = [call for call in calls if call[0] in ("train_localizer", "train_detector")]
    assert {call[1].data.classes for call in boxes} == {"scenes_base"}
    measured = [call for call in calls if call[0] in ("evaluate", "recall")]
    assert len(measured) == 6
    assert {call[1].path for call in measured} == {str(tmp_path / "data" / "held_out")}
    # All models without a localizer share the proposals of one localizer.
    assert {call[1].localizer for call in measured} == {str(tmp_path / "localizer" / "model")}
    assert {name: values["AP50_novel"] for name, values in metrics.items()} == {
        "random": 20.0, "CLIP": 30.0, "RegionCLIP": 40.0,
        "CLIP zero-shot": 10.0, "RegionCLIP zero-shot": 12.0,
    }  # fmt: skip
    labelled, held_out = (
        ArrayRecordSource(tmp_path / "data" / name) for name in ("labelled", "held_out")
    )
    assert len(labelled) == 5 and isinstance(labelled[0], DetectionRecord)
    seen = {labelled[i].image for i in range(5)}
    assert not seen & {held_out[i].image for i in range(2)}


def test_results_a_gallery_and_the_seeds_are_written(mocked_jobs, config, tmp_path, capsys):
    mocked_jobs(config, tmp_path)
    results = read_results(tmp_path / "results.json")
    assert results["RegionCLIP"] == {"AP50_novel": 40.0}
    details = results["details"]
    assert (details["seed"], details["scenes_seed"]) == (23, 5)
    assert details["localizer"] == {"recall@100": 80.0}
    assert details["counts"]["localizer"]["recall"]["images_without_boxes"] == 1
    assert set(details["counts"]) == {"localizer", *(set(results) - {"format", "details"})}
    assert "live batch norms" in details["random_start"]
    assert "detector from random" in details["seconds"]
    assert set(details["errors"]) == set(results) - {"format", "details"}
    for name in ("detections.png", "errors.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "errors of RegionCLIP zero-shot: no objects" in printed
    assert str(tmp_path / "results.json") in printed and "recall@100" in printed
    assert "recall: 2 images (1 without boxes); all: 1 boxes, 1 of 1 classes" in printed
