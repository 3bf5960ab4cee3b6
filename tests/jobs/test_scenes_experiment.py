"""Arguments that the synthetic experiment passes from one job to the next, all jobs mocked."""

import dataclasses
import hashlib

import pytest

from answers import no_errors
from regionclip_jax import settings as sections
from regionclip_jax.artifacts.results import read_results
from regionclip_jax.data.scenes.vocabulary import CONCEPTS, NOVEL_SHAPES, SHAPES
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord
from regionclip_jax.jobs import scenes_experiment
from regionclip_jax.jobs.evaluate import Evaluation

SCENES = sections.ScenesSettings(
    seed=5,
    side=48,
    num_closeups=5,
    num_scenes=7,
    num_test=3,
    closeup_objects=(1, 1),
    closeup_sizes=(0.5, 0.9),
    scene_objects=(2, 3),
    scene_sizes=(0.3, 0.5),
    overlap=0.2,
    typicality=0.8,
    clutter=1,
)


@pytest.fixture(scope="module")
def config(data, evaluation, optimizer, regions, run_section, model_section):
    fresh, boxes = model_section("nano_vit"), sections.TrainLocalizerSettings()
    shared = dict(
        matmul_precision="default",
        data=dataclasses.replace(data, path=""),
        optimizer=optimizer,
        run=run_section,
    )
    concepts = sections.ConceptSettings(names_file="", templates="plain")
    return sections.ScenesExperimentSettings(
        job="scenes_experiment",
        matmul_precision="default",
        seed=23,
        scenes=SCENES,
        num_labelled=4,
        train_clip=sections.TrainClipSettings(
            job="train_clip", image_text_chunk=None, model=fresh, **shared
        ),
        train_localizer=sections.TrainLocalizerSettings(
            data=dataclasses.replace(boxes.data, source="array_record", classes="scenes_base"),
            optimizer=optimizer,
            run=run_section,
        ),
        pretrain=sections.PretrainSettings(
            job="pretrain",
            student=fresh,
            teacher=fresh,
            concepts=concepts,
            regions=regions,
            **shared,
        ),
        evaluation=dataclasses.replace(evaluation, path=""),
        zero_shot=dataclasses.replace(evaluation, path="", regions="localizer"),
    )


@pytest.fixture(scope="module")
def scene_sets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scenes") / "data"
    scenes_experiment.draw(SCENES, directory, 4)
    names = ("whole_images", "scenes", "held_out", "labelled")
    sources = {name: ArrayRecordSource(directory / name) for name in names}
    return {name: [source[i] for i in range(len(source))] for name, source in sources.items()}


def test_the_training_sets_have_images_and_captions_but_no_boxes(scene_sets):
    for name, count in (("whole_images", 5 + 7), ("scenes", 7)):
        records = scene_sets[name]
        assert len(records) == count
        assert {type(record) for record in records} == {ImageTextRecord}
        assert all(len(record.captions) == 1 and not record.tags for record in records)


def test_the_held_out_set_has_boxes_and_shares_no_image_with_training(scene_sets):
    def image_hashes(name):
        return {hashlib.sha256(record.image).digest() for record in scene_sets[name]}

    held_out = scene_sets["held_out"]
    assert len(held_out) == 3 and {type(record) for record in held_out} == {DetectionRecord}
    assert sum(len(record.boxes) for record in held_out) >= 3
    assert len(image_hashes("held_out")) == 3
    training = image_hashes("whole_images") | image_hashes("scenes") | image_hashes("labelled")
    assert len(training) == 5 + 7 + 4 and not image_hashes("held_out") & training
    # RegionCLIP trains on the scenes of its teacher, without the close-ups.
    assert image_hashes("scenes") < image_hashes("whole_images")


@pytest.fixture
def mocked_jobs(monkeypatch, tmp_path, scene_sets):
    """``mocked_jobs(config)``: the metrics of the experiment and the calls of its jobs."""
    calls = []
    numbers = {"teacher": 40.0, "student": 60.0, "teacher_zero-shot": 10.0}

    def train_clip(config, workdir):
        calls.append(("train_clip", config, workdir))
        return workdir / "model"

    def train_localizer(config, workdir):
        calls.append(("train_localizer", config, workdir))
        return workdir / "model"

    def pretrain(config, workdir, concepts):
        calls.append(("pretrain", config, workdir, concepts))
        return workdir / "model"

    def evaluate_model(directory, section, dtype, *, vocabulary_path, detections_path):
        calls.append(("evaluate", directory, section, dtype))
        name = detections_path.stem.removeprefix("detections_")
        metrics = {"AP50_novel": numbers.get(name, 20.0)}
        return Evaluation(metrics, {}, [], no_errors(), [], {}, None, {})

    monkeypatch.setattr(scenes_experiment.train_clip, "run", train_clip)
    monkeypatch.setattr(scenes_experiment.train_localizer, "run", train_localizer)
    monkeypatch.setattr(scenes_experiment.pretrain, "run", pretrain)
    monkeypatch.setattr(scenes_experiment.evaluate, "evaluate_model", evaluate_model)

    def run(config):
        calls.clear()
        return scenes_experiment.run(config, tmp_path), list(calls)

    return run


def test_the_seed_changes_all_trainings_but_not_the_images(
    mocked_jobs, config, changed, monkeypatch
):
    sections_drawn = []
    monkeypatch.setattr(
        scenes_experiment, "draw", lambda section, *_: sections_drawn.append(section)
    )
    monkeypatch.setattr(scenes_experiment, "_write", lambda *arguments: None)
    for seed in (23, 24):
        _, calls = mocked_jobs(changed(config, {"seed": seed}))
        assert [call[1].run.seed for call in calls[:3]] == [seed] * 3
    assert sections_drawn == [SCENES, SCENES]


def test_the_student_starts_from_the_teacher_and_novel_boxes_are_only_evaluated(
    mocked_jobs, config, tmp_path
):
    metrics, calls = mocked_jobs(config)
    jobs = ["train_clip", "train_localizer", "pretrain", *["evaluate"] * 4]
    assert [call[0] for call in calls] == jobs
    (_, first, first_workdir), (_, boxes, boxes_workdir), (_, second, second_workdir, concepts) = (
        calls[:3]
    )
    data = tmp_path / "data"
    assert first.data.path == str(data / "whole_images") and first.model.init_from == ""
    teacher, localizer = first_workdir / "model", boxes_workdir / "model"
    assert boxes.data.path == str(data / "labelled") and boxes.data.classes == "scenes_base"
    assert boxes.localizer.init_from == str(teacher)
    assert second.data.path == str(data / "scenes")
    assert second.student.init_from == second.teacher.init_from == str(teacher)
    assert second.regions.localizer == str(localizer)
    assert concepts == CONCEPTS
    assert [call[1] for call in calls[3:]] == [teacher, second_workdir / "model"] * 2
    assert {call[2].path for call in calls[3:]} == {str(data / "held_out")}
    assert [call[2].localizer for call in calls[3:]] == ["", "", *[str(localizer)] * 2]
    # The job keeps the rest of the recipe.
    assert dataclasses.replace(first, data=config.train_clip.data, run=config.train_clip.run) == (
        config.train_clip
    )
    assert dataclasses.replace(second.regions, localizer="") == config.pretrain.regions
    assert second.optimizer == config.pretrain.optimizer
    assert {name: values["AP50_novel"] for name, values in metrics.items()} == {
        "teacher": 40.0, "student": 60.0, "teacher zero-shot": 10.0, "student zero-shot": 20.0,
    }  # fmt: skip


def test_results_a_gallery_and_the_recipe_are_written(mocked_jobs, config, tmp_path, capsys):
    mocked_jobs(config)
    results = read_results(tmp_path / "results.json")
    assert results["student"] == {"AP50_novel": 60.0}
    details = results["details"]
    assert (details["seed"], details["scenes_seed"]) == (23, 5)
    assert details["novel_classes"] == list(NOVEL_SHAPES) and set(NOVEL_SHAPES) < set(SHAPES)
    assert details["config"]["scenes"]["num_closeups"] == 5
    assert set(details["seconds"]) == {
        "drawing", "teacher", "localizer", "pretraining", "evaluation"
    }  # fmt: skip
    for name in ("regions.png", "errors.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    models = {"teacher", "student", "teacher zero-shot", "student zero-shot"}
    assert set(details["errors"]) == models
    printed = capsys.readouterr().out
    assert "next: your own images" in printed
    assert "AP50 of given boxes, novel     40.0     60.0       +20.0" in printed
    assert "AP50 of detection, novel       10.0     20.0       +10.0" in printed
    assert "detection of the student: no objects" in printed
    assert str(tmp_path / "results.json") in printed


def test_other_scenes_in_the_same_directory_are_refused_before_training(
    mocked_jobs, config, changed
):
    mocked_jobs(config)
    with pytest.raises(FileExistsError, match="whole_images holds another data set"):
        mocked_jobs(changed(config, {"scenes.typicality": 0.1}))
