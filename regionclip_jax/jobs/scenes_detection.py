"""Synthetic experiment with detectors: the effect of a detector's initial weights (paper table 1).

Draw images, train a small CLIP on whole images, a localizer on boxes of base shapes, and RegionCLIP
on the localizer's regions. Then train the same open-vocabulary detector on base shapes from three
initial weights (a random image tower, CLIP, RegionCLIP). Test all on base and novel shapes, with
the zero-shot detection of CLIP and RegionCLIP.
"""

import dataclasses
from pathlib import Path

import jax

from regionclip_jax.artifacts.results import write_results
from regionclip_jax.assembly.sources import build_boxes_source
from regionclip_jax.data.scenes.vocabulary import NOVEL_SHAPES
from regionclip_jax.evaluation import detection_gallery
from regionclip_jax.evaluation.counts import coverage_text
from regionclip_jax.jobs import evaluate, proposal_recall, train_detector
from regionclip_jax.jobs.scenes_experiment import (
    ZERO_SHOT,
    as_part,
    spent_text,
    train_models,
    with_data,
)
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.reporting.stages import Stages
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.settings import ScenesDetectionSettings, TrainDetectorSettings, as_plain

RANDOM, CLIP, REGIONCLIP = "random", "CLIP", "RegionCLIP"
# Seconds on two idle CPU cores, for the remaining time.
_USUAL = {
    "drawing": 30.0, "teacher": 130.0, "localizer": 68.0, "pretraining": 180.0,
    **{f"detector from {name}": 52.0 for name in (RANDOM, CLIP, REGIONCLIP)}, "evaluation": 48.0,
}  # fmt: skip


def run(settings: ScenesDetectionSettings, workdir: Path) -> dict:
    """Run or resume the experiment, and return the metrics by initial weights."""
    stages = Stages(_USUAL)
    trained = train_models(settings, workdir, stages, student="regionclip")
    teacher, student, localizer = trained.teacher, trained.student, trained.localizer
    data = workdir / "data"
    detector_config = with_data(
        as_part(settings.train_detector, settings.seed, settings), data / "labelled"
    )
    models, labels = {}, {RANDOM: teacher, CLIP: teacher, REGIONCLIP: student}
    for name, origin in labels.items():
        models[name] = stages.run(
            f"detector from {name}",
            lambda name=name, origin=origin: train_detector.run(
                _from(detector_config, name, origin, localizer, settings),
                workdir / f"detector_{name}",
            ),
        )
    models |= {f"{CLIP} {ZERO_SHOT}": teacher, f"{REGIONCLIP} {ZERO_SHOT}": student}

    # All models, also the zero-shot ones, are scored by the detectors' settings.
    scores = settings.train_detector.scores
    evaluation = dataclasses.replace(
        settings.train_detector.evaluation,
        localizer=str(localizer),
        proposals=scores.proposals,
        detection=scores.detection,
        path=str(data / "held_out"),
    )

    def evaluate_all():
        return {
            name: evaluate.evaluate_model(
                path,
                evaluation,
                settings.train_detector.model.dtype,
                vocabulary_path=workdir / f"class_vocabulary_{name.replace(' ', '_')}.npz",
                detections_path=workdir / f"detections_{name.replace(' ', '_')}.json",
            )
            for name, path in models.items()
        }

    evaluations = stages.run("evaluation", evaluate_all)
    recall = proposal_recall.measure(localizer, evaluation, settings.train_detector.model.dtype)
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    if jax.process_index() == 0:
        _write(settings, workdir, evaluation, evaluations, metrics, recall, stages.seconds)
    return metrics


def _from(
    settings: TrainDetectorSettings, name: str, origin: Path, localizer: Path, whole
) -> TrainDetectorSettings:
    """Return the settings of the same training with other initial weights."""
    changes = {"localizer": str(localizer)}
    optimizer = settings.optimizer
    if name == RANDOM:
        changes["image_tower"] = "random"
        optimizer = dataclasses.replace(optimizer, frozen_patterns=whole.random_frozen_patterns)
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, init_from=str(origin)),
        detector=dataclasses.replace(settings.detector, **changes),
        optimizer=optimizer,
    )


def _write(settings, workdir: Path, evaluation, evaluations, metrics, recall, seconds) -> None:
    found, coverage = recall
    coverages = {name: each.coverage for name, each in evaluations.items()}
    details = {
        "what": "detectors trained on base shapes from three starts, and detection without any "
        "such training, on held-out drawn scenes, in percent; weights trained here from random, so "
        "the numbers say nothing about real images",
        "random_start": "image tower from random weights with live batch norms, the others with "
        "the frozen norms they were pretrained with; text tower, localizer and recipe are the same",
        "novel_classes": list(NOVEL_SHAPES),
        "seed": settings.seed,
        "scenes_seed": settings.scenes.seed,
        "localizer": found,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "per_category": {n: e.per_category for n, e in evaluations.items()},
        "errors": {n: e.errors._asdict() for n, e in evaluations.items()},
        "counts": {n: c.as_json() for n, c in {**coverages, "localizer": coverage}.items()},
        "config": as_plain(settings),
    }
    write_results(workdir / "results.json", metrics, details=details)
    image = detection_gallery.draw(
        build_boxes_source(evaluation, "evaluation"),
        {name: evaluations[name].results for name in (CLIP, REGIONCLIP)},
        class_names=evaluations[CLIP].class_names,
        all_annotated=True,
        subtitle="detectors trained on base shapes, from CLIP and from RegionCLIP",
    )
    write_png(workdir / "detections.png", image)
    print(comparison_table({"localizer": found}))
    print(coverage_text({"localizer": coverage}))
    evaluate.report(workdir, evaluations, image, settings.tracker)
    print(spent_text(seconds))
    print(f"numbers: {workdir / 'results.json'}")
    print(f"images: {workdir / 'detections.png'}, {workdir / 'errors.png'}", flush=True)
