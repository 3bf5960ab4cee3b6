"""Synthetic experiment: draw images, train a small CLIP, pretrain RegionCLIP, compare.

It runs three jobs: train_clip (the teacher and initial student), pretrain, evaluate. No
ground-truth box is used before the evaluation. Only this job and ``scenes_detection`` call other
jobs.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.artifacts.results import write_results
from regionclip_jax.data.scenes.dataset import SceneImages, write_scenes
from regionclip_jax.data.scenes.vocabulary import CONCEPTS, NOVEL_SHAPES, SHAPES
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.evaluation import recognition_gallery
from regionclip_jax.jobs import evaluate, pretrain, train_clip
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.reporting.progress import readable_seconds
from regionclip_jax.settings import ScenesExperimentSettings, ScenesSettings, as_plain
from regionclip_jax.sharding.barriers import barrier

_NEAR, _FAR, _HELD_OUT, _LABELLED = 0, 1, 2, 3


def run(settings: ScenesExperimentSettings, workdir: Path) -> dict:
    """Run or resume the experiment, and return the metrics of teacher and student."""
    seconds: dict[str, float] = {}
    timed(seconds, "drawing", lambda: draw(settings.scenes, workdir / "data"))

    train_clip_config = with_seed(settings.train_clip, settings.seed)
    train_clip_config = with_data(train_clip_config, workdir / "data" / "whole_images")
    teacher = timed(
        seconds, "teacher", lambda: train_clip.run(train_clip_config, workdir / "teacher")
    )

    pretrain_config = with_seed(settings.pretrain, settings.seed)
    pretrain_config = with_data(pretrain_config, workdir / "data" / "scenes")
    start = {"init_from": str(teacher)}
    pretrain_config = dataclasses.replace(
        pretrain_config,
        student=dataclasses.replace(pretrain_config.student, **start),
        teacher=dataclasses.replace(pretrain_config.teacher, **start),
    )
    student = timed(
        seconds,
        "pretraining",
        lambda: pretrain.run(pretrain_config, workdir / "student", CONCEPTS),
    )

    evaluation = dataclasses.replace(settings.evaluation, path=str(workdir / "data" / "held_out"))
    models = {"teacher": teacher, "student": student}
    evaluations = timed(
        seconds,
        "evaluation",
        lambda: {
            name: evaluate.evaluate_model(
                path,
                evaluation,
                pretrain_config.student.dtype,
                vocabulary_path=workdir / name / "class_vocabulary.npz",
                detections_path=workdir / f"detections_{name}.json",
            )
            for name, path in models.items()
        },
    )
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    if jax.process_index() == 0:
        _write(settings, workdir, evaluations, metrics, seconds)
    return metrics


def draw(scenes: ScenesSettings, directory: Path, num_labelled: int = 0) -> None:
    """Draw the data sets in the first process; complete ones are kept.

    Args:
        num_labelled: number of scenes with boxes for training detectors; 0 draws none.
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
        "what": "zero-shot recognition of ground-truth boxes on held-out drawn scenes, in percent; "
        "weights trained here from random, so the numbers say nothing about real images",
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
    image = recognition_gallery.draw(
        ArrayRecordSource(workdir / "data" / "held_out"),
        {name: evaluation.results for name, evaluation in evaluations.items()},
        class_names=SHAPES,
    )
    write_png(workdir / "regions.png", image)
    evaluate.report(workdir, evaluations, image)
    spent = ", ".join(f"{name} {readable_seconds(value)}" for name, value in seconds.items())
    print(f"spent: {spent}\nnumbers: {workdir / 'results.json'}")
    print(f"images: {workdir / 'regions.png'}, {workdir / 'errors.png'}", flush=True)


def timed(seconds: dict[str, float], name: str, work: Callable):
    """Return the result of ``work``, and store its duration in ``seconds``."""
    logging.info("scenes: %s", name)
    began = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - began
    return result


def with_seed(settings, seed: int):
    """Return training settings with another seed."""
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))


def with_data(settings, path: Path):
    """Return training settings with another data path."""
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=str(path)))
