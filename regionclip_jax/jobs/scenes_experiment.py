"""Synthetic experiment: train a small CLIP, a localizer and RegionCLIP on drawn images, compare.

It runs four jobs: train_clip (the teacher and initial student), train_localizer, pretrain on the
localizer's proposals, evaluate. The localizer is trained on boxes of base shapes. No box of a novel
shape is used before the evaluation. Only the jobs of synthetic scenes call other jobs.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from regionclip_jax.artifacts.results import write_results
from regionclip_jax.data.scenes.dataset import SceneImages, write_scenes
from regionclip_jax.data.scenes.vocabulary import CONCEPTS, NOVEL_SHAPES
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.evaluation import case_gallery
from regionclip_jax.jobs import evaluate, pretrain, train_clip, train_localizer
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.reporting.stages import Stages, readable_seconds
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.settings import (
    JobSettings,
    ScenesDetectionSettings,
    ScenesExperimentSettings,
    ScenesSettings,
    as_plain,
)
from regionclip_jax.sharding.barriers import barrier

_NEAR, _FAR, _HELD_OUT, _LABELLED = 0, 1, 2, 3
# Seconds on two idle CPU cores, for the remaining time.
_USUAL = {"drawing": 32.0, "teacher": 186.0, "localizer": 78.0, "pretraining": 152.0,
          "evaluation": 50.0}  # fmt: skip
ZERO_SHOT = "zero-shot"
_NEXT = """\
next: your own images and captions, and real weights, are two sections of README.md; these weights
know drawn shapes only"""


class Models(NamedTuple):
    """Model directories."""

    teacher: Path
    localizer: Path
    student: Path


def run(settings: ScenesExperimentSettings, workdir: Path) -> dict:
    """Run or resume the experiment, and return the metrics of teacher and student."""
    stages = Stages(_USUAL)
    models = train_models(settings, workdir, stages, student="student")
    evaluations = stages.run("evaluation", lambda: _evaluate(settings, workdir, models))
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    if jax.process_index() == 0:
        _write(settings, workdir, evaluations, metrics, stages.seconds)
    return metrics


def train_models(
    settings: ScenesExperimentSettings | ScenesDetectionSettings,
    workdir: Path,
    stages: Stages,
    *,
    student: str,
) -> Models:
    """Draw the images and train teacher, localizer and student, or resume these trainings.

    Args:
        student: name of the student's folder.
    """
    data = workdir / "data"
    stages.run("drawing", lambda: draw(settings.scenes, data, settings.num_labelled))

    clip = with_data(as_part(settings.train_clip, settings.seed, settings), data / "whole_images")
    teacher = stages.run("teacher", lambda: train_clip.run(clip, workdir / "teacher"))
    start = {"init_from": str(teacher)}

    boxes = with_data(as_part(settings.train_localizer, settings.seed, settings), data / "labelled")
    boxes = dataclasses.replace(boxes, localizer=dataclasses.replace(boxes.localizer, **start))
    localizer = stages.run("localizer", lambda: train_localizer.run(boxes, workdir / "localizer"))

    captions = with_data(as_part(settings.pretrain, settings.seed, settings), data / "scenes")
    captions = dataclasses.replace(
        captions,
        student=dataclasses.replace(captions.student, **start),
        teacher=dataclasses.replace(captions.teacher, **start),
        regions=dataclasses.replace(captions.regions, localizer=str(localizer)),
    )
    trained = stages.run("pretraining", lambda: pretrain.run(captions, workdir / student, CONCEPTS))
    return Models(teacher, localizer, trained)


def _evaluate(settings: ScenesExperimentSettings, workdir: Path, models: Models) -> dict:
    """Return the evaluations of both models, on given boxes and on the localizer's proposals."""
    held_out = {"path": str(workdir / "data" / "held_out")}
    given = dataclasses.replace(settings.evaluation, **held_out)
    proposed = dataclasses.replace(settings.zero_shot, localizer=str(models.localizer), **held_out)
    return {
        name: evaluate.evaluate_model(
            path,
            section,
            settings.pretrain.student.dtype,
            vocabulary_path=workdir / path.parent.name / "class_vocabulary.npz",
            detections_path=workdir / f"detections_{name.replace(' ', '_')}.json",
        )
        for section, suffix in ((given, ""), (proposed, f" {ZERO_SHOT}"))
        for name, path in (
            (f"teacher{suffix}", models.teacher),
            (f"student{suffix}", models.student),
        )
    }


def draw(scenes: ScenesSettings, directory: Path, num_labelled: int) -> None:
    """Draw the data sets in the first process; complete ones are kept.

    Args:
        num_labelled: number of scenes with boxes for training localizers and detectors; 0 draws no
            such set.
    """

    if jax.process_index() == 0:
        _draw(scenes, directory, num_labelled)
    barrier("drew the images")


def _draw(scenes: ScenesSettings, directory: Path, num_labelled: int) -> None:
    def images(stream: int, num_objects, sizes) -> SceneImages:
        return SceneImages(
            stream=stream,
            seed=scenes.seed,
            side=scenes.side,
            num_objects=num_objects,
            sizes=sizes,
            overlap=scenes.overlap,
            typicality=scenes.typicality,
            clutter=scenes.clutter,
        )

    near = images(_NEAR, scenes.closeup_objects, scenes.closeup_sizes)
    far = images(_FAR, scenes.scene_objects, scenes.scene_sizes)
    held_out = dataclasses.replace(far, stream=_HELD_OUT)
    write_scenes(
        directory / "whole_images",
        {"closeups": (near, scenes.num_closeups), "scenes": (far, scenes.num_scenes)},
        with_boxes=False,
    )
    write_scenes(directory / "scenes", {"scenes": (far, scenes.num_scenes)}, with_boxes=False)
    write_scenes(directory / "held_out", {"scenes": (held_out, scenes.num_test)}, with_boxes=True)
    if num_labelled:
        labelled = dataclasses.replace(far, stream=_LABELLED)
        write_scenes(directory / "labelled", {"scenes": (labelled, num_labelled)}, with_boxes=True)


def _write(settings, workdir: Path, evaluations, metrics, seconds) -> None:
    coverages = {name: evaluation.coverage for name, evaluation in evaluations.items()}
    details = {
        "what": "held-out drawn scenes, in percent: zero-shot recognition of ground-truth boxes, "
        f"and, named {ZERO_SHOT}, detection on the proposals of a localizer trained on base "
        "shapes; weights trained here from random, so the numbers say nothing about real images",
        "novel_classes": list(NOVEL_SHAPES),
        "seed": settings.seed,
        "scenes_seed": settings.scenes.seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "per_category": {n: e.per_category for n, e in evaluations.items()},
        "errors": {n: e.errors._asdict() for n, e in evaluations.items()},
        "most_confused": {n: e.confused for n, e in evaluations.items()},
        "counts": {name: coverage.as_json() for name, coverage in coverages.items()},
        "config": as_plain(settings),
    }
    write_results(workdir / "results.json", metrics, details=details)
    found = {name: evaluations[f"{name} {ZERO_SHOT}"] for name in ("teacher", "student")}
    image = case_gallery.draw(
        ArrayRecordSource(workdir / "data" / "held_out"),
        {name: evaluation.results for name, evaluation in found.items()},
        class_names=found["student"].class_names,
        subtitle="the best detections, one for each object, on held-out drawn scenes; weights "
        "trained here from random",
    )
    write_png(workdir / "regions.png", image)
    evaluate.show(workdir, evaluations, image, settings.tracker)
    print(_summary(evaluations))
    print(spent_text(seconds))
    print(f"numbers: {workdir / 'results.json'}")
    print(f"images: {workdir / 'regions.png'}, {workdir / 'errors.png'}\n{_NEXT}", flush=True)


def _summary(evaluations: dict) -> str:
    """Return a table of AP50 in ten lines, with what the detections of both models lose to."""
    models = ("teacher", "student")
    kinds = {"given boxes": "", "detection": f" {ZERO_SHOT}"}
    columns = {
        model: {
            f"AP50 of {kind}, {group}": evaluations[f"{model}{suffix}"].metrics.get(f"AP50_{group}")
            for kind, suffix in kinds.items()
            for group in ("novel", "base", "all")
        }
        for model in models
    }
    errors = [
        f"detection of the {model}: {evaluations[f'{model} {ZERO_SHOT}'].errors.text()}"
        for model in models
    ]
    return "\n".join([comparison_table(columns), *errors])


def spent_text(seconds: dict[str, float]) -> str:
    """Return a line with the time of each stage."""
    spent = ", ".join(f"{name} {readable_seconds(value)}" for name, value in seconds.items())
    return f"spent: {spent}; in all {readable_seconds(sum(seconds.values()))}"


def as_part(settings, seed: int, whole: JobSettings):
    """Return training settings with a seed and the tracker of the whole experiment."""
    run = dataclasses.replace(settings.run, seed=seed)
    return dataclasses.replace(settings, run=run, tracker=whole.tracker)


def with_data(settings, path: Path):
    """Return training settings with another data path."""
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=str(path)))
