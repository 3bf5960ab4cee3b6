"""Evaluate zero-shot recognition of given boxes, or detection, with the metrics of the paper.

Each model classifies regions (ground-truth boxes, a localizer's proposals, or sliding windows) by
text embeddings of the class names. The results have the official metrics of the data. Beside AP
they have region top-1 on given boxes, or the recall of the proposals, which separates bad
recognition from a bad localizer.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.detector_heads import (
    has_heads,
    has_pyramid,
    load_heads,
    open_pyramid,
)
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, load_localizer_card
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model
from regionclip_jax.artifacts.results import write_detections, write_results
from regionclip_jax.artifacts.score_settings import complete_scores
from regionclip_jax.artifacts.tokenizer_file import tokenizer_of
from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder, require_matching
from regionclip_jax.assembly import concept_pool
from regionclip_jax.assembly.models import (
    compute_dtype,
    log_dtype,
    resolve_dtype,
    with_own_scores,
)
from regionclip_jax.assembly.optimization import build_mesh
from regionclip_jax.assembly.prediction import build_step
from regionclip_jax.assembly.sources import build_boxes_source
from regionclip_jax.assembly.streams import DetectionPass
from regionclip_jax.evaluation import detection_gallery, error_chart
from regionclip_jax.evaluation.counts import Coverage, coverage_text
from regionclip_jax.evaluation.datasets import open_dataset
from regionclip_jax.evaluation.error_analysis import Errors
from regionclip_jax.evaluation.evaluators import (
    Detection,
    ProposalRecall,
    RegionRecognition,
    evaluate,
)
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.vit_pyramid import PyramidHeads
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.reporting.trackers import check_tracker
from regionclip_jax.reporting.writers import write_evaluation
from regionclip_jax.settings import (
    ConfigError,
    EvaluateSettings,
    EvaluationSettings,
    ScoreSettings,
    as_plain,
)
from regionclip_jax.sharding.barriers import compile_barrier
from regionclip_jax.sharding.consistency import require_consistent
from regionclip_jax.sharding.global_arrays import (
    batch_sharding,
    local_rows,
    replicate,
    to_global_batch,
)
from regionclip_jax.steps.predict_step import DetectorVariables, Prediction
from regionclip_jax.structures import DetectionBatch
from regionclip_jax.text.names import names_among, tokenized_text
from regionclip_jax.text.tokenizer import TokenizerSource

_GROUND_TRUTH, _LOCALIZER = "ground_truth", "localizer"


class Evaluation(NamedTuple):
    """Metrics in percent, with their details."""

    metrics: dict[str, float | None]
    per_category: dict[str, dict]
    confused: list
    errors: Errors
    results: list[dict]
    # Boxes, weights and images of the evaluation.
    saw: dict[str, str]
    images_per_second: float | None
    class_names: dict[int, str]
    # Settings of the scores: the recipe's and, where it states none, the model's own.
    scores: dict | None = None
    # Every object of a class has a box, as in COCO but not in LVIS.
    all_annotated: bool = True
    # Updates of the training that wrote the model; 0 for a converted one.
    step: int = 0
    coverage: Coverage = Coverage({}, {})


def run(settings: EvaluateSettings, workdir: Path) -> dict:
    """Evaluate every model of the recipe on the same images, and write ``results.json``."""
    check_tracker(settings.tracker)
    log_dtype("evaluation", settings.dtype)
    for path in settings.models.values():
        # All models, before the first is evaluated.
        load_card(path)
        if settings.evaluation.regions == _LOCALIZER:
            where = settings.evaluation.localizer or path
            if settings.evaluation.localizer or not has_pyramid(path):
                load_localizer_card(where)
    evaluations = {
        name: evaluate_model(
            Path(path),
            settings.evaluation,
            settings.dtype,
            vocabulary_path=workdir / f"vocabulary_{name}.npz",
            detections_path=workdir / f"detections_{name}.json",
        )
        # A recipe's dictionaries are sorted by name; the teacher comes first, as the baseline.
        for name, path in sorted(settings.models.items(), key=lambda item: item[0] != "teacher")
    }
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    if jax.process_index() == 0:
        details = {
            "saw": {name: e.saw for name, e in evaluations.items()},
            "images_per_second": {n: e.images_per_second for n, e in evaluations.items()},
            "models": settings.models,
            "dtype": resolve_dtype(settings.dtype),
            "evaluation": as_plain(settings.evaluation),
            "scores": {n: e.scores for n, e in evaluations.items()},
            "per_category": {n: e.per_category for n, e in evaluations.items()},
            "errors": {n: e.errors._asdict() for n, e in evaluations.items()},
            "counts": {n: e.coverage.as_json() for n, e in evaluations.items()},
        }
        write_results(workdir / "results.json", metrics, details=details)
        image = detection_gallery.draw(
            build_boxes_source(settings.evaluation, "evaluation"),
            {name: evaluation.results for name, evaluation in evaluations.items()},
            class_names=next(iter(evaluations.values())).class_names,
            all_annotated=next(iter(evaluations.values())).all_annotated,
            subtitle="; ".join(f"{n}: {e.saw['boxes']}" for n, e in evaluations.items()),
        )
        write_png(workdir / "detections.png", image)
        for name, evaluation in evaluations.items():
            rate = evaluation.images_per_second
            print(f"{name}: {', '.join(f'{k}: {v}' for k, v in evaluation.saw.items())}"
                  + (f", {rate:.1f} images/s" if rate else ""))  # fmt: skip
        report(workdir, evaluations, image, settings.tracker)
        print("AP50 lost to each kind of error:")
        print(comparison_table({n: e.errors.lost["all"] for n, e in evaluations.items()}))
    return metrics


def check(settings: EvaluationSettings) -> None:
    """Open the images and the metric of an evaluation, before the training that it follows.

    Raises:
        CheckpointMismatch: the vocabulary or localizer that the settings name is missing.
        ConfigError: as ``evaluate_model``.
        MissingExtra: the metric needs a package that is not installed.
    """
    if settings.vocabulary:
        Vocabulary.load(settings.vocabulary)
    if settings.regions == _LOCALIZER and settings.localizer:
        load_localizer_card(settings.localizer)
    source = build_boxes_source(settings, "evaluation", keep_file=True)
    # The trained classes are not known yet.
    dataset = open_dataset(source, settings.class_split, source.category_names, settings.classes)
    Detection(dataset, max_detections=settings.detection.max_detections, given_boxes=False)
    DetectionPass(settings, source)


def report(
    workdir: Path, evaluations: Mapping[str, Evaluation], image: np.ndarray, tracker: str | None
) -> None:
    """Print the metrics, what they count, and the errors; ``show`` these."""
    print(comparison_table({name: evaluation.metrics for name, evaluation in evaluations.items()}))
    print(coverage_text({n: e.coverage for n, e in evaluations.items()}))
    for name, evaluation in evaluations.items():
        print(f"errors of {name}: {evaluation.errors.text()}", flush=True)
    show(workdir, evaluations, image, tracker)


def show(
    workdir: Path, evaluations: Mapping[str, Evaluation], image: np.ndarray, tracker: str | None
) -> None:
    """Draw the errors; write metrics, image and errors to TensorBoard and the tracker."""
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    chart = error_chart.draw({name: evaluation.errors for name, evaluation in evaluations.items()})
    write_png(workdir / "errors.png", chart)
    steps = {name: evaluation.step for name, evaluation in evaluations.items()}
    images = {"regions": image, "errors": chart}
    batches = {name: image[None].astype(np.float32) / 255 for name, image in images.items()}
    write_evaluation(workdir, metrics, steps, batches, tracker=tracker)


def evaluate_model(
    directory: Path,
    settings: EvaluationSettings,
    dtype: str,
    *,
    vocabulary_path: Path,
    detections_path: Path,
) -> Evaluation:
    """Evaluate one model directory on all images.

    Args:
        directory: model directory.
        settings: regions, classes and images; scores that are None are the directory's own.
        dtype: type of the computation.
        vocabulary_path: cache of the embedded class names.
        detections_path: file of the detections, which are written before they are scored.

    Raises:
        CheckpointMismatch: the model, its localizer or the vocabulary is missing or does not match.
        ConfigError: the settings contradict each other or the data.
        InconsistentHosts: processes of this run found different data.
        MissingExtra: the metric needs a package that is not installed.
    """
    detector = _load(directory, settings, dtype)
    settings = with_own_scores(settings, detector.scores)
    if settings.detection.fuses and detector.heads is None:
        raise ConfigError(
            "evaluation.detection.base_fusion, novel_fusion: only a detector on a pyramid has "
            f"the scores of a frozen tower beside its own, and {directory} has no pyramid; set "
            "both to None"
        )
    source = build_boxes_source(settings, "evaluation", keep_file=True)
    dataset = open_dataset(source, settings.class_split, detector.classes, settings.classes)
    given_boxes = settings.regions == _GROUND_TRUTH
    detection = Detection(
        dataset,
        max_detections=settings.detection.max_detections,
        given_boxes=given_boxes,
        with_masks=detector.with_masks,
        save=lambda results: _save(detections_path, results),
    )
    batches = DetectionPass(settings, source)
    regions = (
        RegionRecognition(dataset)
        if given_boxes
        else ProposalRecall({"all": dataset.groups["all"]})
    )
    require_consistent({"evaluation": {"records": len(source), "classes": dataset.names}})
    vocabulary = _vocabulary(settings, dataset.names, detector, vocabulary_path)
    variables = detector.variables.replace(
        class_embeddings=vocabulary.embeddings,
        trained_classes=names_among(dataset.names, detector.classes or ()),
    )
    mesh = build_mesh(settings.batch_size, "evaluation.batch_size")
    predict_step = build_step(settings, detector.model, detector.localizer, detector.heads)
    # Each process needs only its own rows.
    step = compile_barrier(jax.jit(predict_step, out_shardings=batch_sharding(mesh)))
    variables, clock = replicate(variables, mesh), _Clock()

    def predict(batch: DetectionBatch) -> Prediction:
        prediction = local_rows(step(variables, to_global_batch(batch, mesh)))
        clock.count(int(batch.mask.sum()))
        return prediction

    metrics, details, counts = evaluate(predict, dataset, batches, [detection, regions])
    saw = detector.saw
    if details["num_images"] < details["num_annotated"]:
        saw["images"] = (
            f"{details['num_images']} of {details['num_annotated']}, the others were skipped: "
            + (
                "AP counts their objects as missed, all other numbers exclude them"
                if getattr(source, "annotation_file", None)
                else "all numbers exclude them"
            )
        )
        logging.warning("%s: images: %s", directory, saw["images"])
    confused = details.get("confused", [])
    logging.info(
        "%s: %d images, %d detections%s",
        directory,
        details["num_images"],
        len(details["results"]),
        "".join(f"; {true} as {guess} ({n})" for true, guess, n in confused[:5]),
    )
    return Evaluation(
        metrics=metrics,
        per_category=details["per_category"],
        confused=confused,
        errors=details["errors"],
        results=details["results"],
        saw=saw,
        images_per_second=clock.rate,
        class_names=dict(zip(dataset.ids, dataset.names, strict=True)),
        scores={
            "proposals": as_plain(settings.proposals),
            "detection": as_plain(settings.detection),
        },
        all_annotated=dataset.metric != "lvis",
        step=detector.step,
        coverage=Coverage(counts, batches.report()),
    )


def _save(path: Path, results: list[dict]) -> None:
    if jax.process_index() == 0:
        write_detections(path, results)


class _Detector(NamedTuple):
    """Loaded parts of a model; ``variables`` lack the class embeddings."""

    model: CLIP
    localizer: Localizer | None
    variables: DetectorVariables
    # The model's own.
    scores: ScoreSettings
    # Training classes of the heads, if known.
    classes: list[str] | None
    # Boxes and weights of the evaluation, as texts.
    saw: dict[str, str]
    # Updates of its training.
    step: int
    tokenizer: TokenizerSource
    # Heads on a pyramid, if the detector has them.
    heads: PyramidHeads | None = None

    @property
    def with_masks(self) -> bool:
        return self.variables.mask_head is not None or bool(self.heads and self.heads.with_masks)


def _load(directory: Path, settings: EvaluationSettings, dtype: str) -> _Detector:
    variables, card = load_model(directory)
    model = CLIP(card.architecture, dtype=compute_dtype(dtype))
    heads, heads_card = load_heads(directory) if has_heads(directory) else (None, None)
    saw = {"boxes": settings.regions.replace("_", " "), "weights": _origin(directory, card)}
    parts: dict[str, Any] = {}
    localizer, architecture, pyramid = None, None, None
    if heads is not None and heads_card is not None:
        pyramid = open_pyramid(heads, heads_card, card.architecture, directory, model.dtype)
    if settings.regions == _LOCALIZER and pyramid is not None and not settings.localizer:
        saw["boxes"] = "proposals of the detector's pyramid"
    elif settings.regions == _LOCALIZER:
        where = settings.localizer or directory
        parts["localizer"], localizer_card = load_localizer(where)
        architecture = localizer_card.architecture
        localizer = Localizer(architecture, model.dtype)
        saw["boxes"] = f"proposals of {_origin(where, localizer_card)}"
    if heads is not None and settings.regions != _GROUND_TRUTH:
        saw["boxes"] += ", moved by the detector's box head"
    if pyramid is not None:
        parts["pyramid_heads"] = pyramid[1]
    elif heads is not None and settings.regions != _GROUND_TRUTH:
        parts["box_head"] = {"params": heads["params"]["box_head"]}
        if "mask_head" in heads["params"]:
            parts["mask_head"] = {"params": heads["params"]["mask_head"]}
    return _Detector(
        model=model,
        localizer=localizer,
        variables=DetectorVariables(variables, None, **parts),
        scores=complete_scores(card.scores, variables["params"], architecture),
        classes=heads_card.source.get("classes") if heads_card else None,
        saw=saw,
        step=card.source.get("step", 0),
        tokenizer=tokenizer_of(directory, card.architecture.text),
        heads=pyramid and pyramid[0],
    )


class _Clock:
    """Rate in images per second without the first batch, which includes compilation."""

    def __init__(self):
        self._began: float | None = None
        self._images = 0
        self.rate: float | None = None

    def count(self, images: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now
            return
        self._images += images
        self.rate = round(self._images / max(now - self._began, 1e-9), 2)


def _origin(directory: str | Path, card) -> str:
    source = card.source.get("file") or f"run {card.source.get('run', 'unknown')}"
    return f"{directory} ({card.label}, {source})"


def _vocabulary(
    settings: EvaluationSettings, names: tuple[str, ...], detector: _Detector, path: Path
) -> Vocabulary:
    """Return the class embeddings in the order of the names."""
    model, variables = detector.model, detector.variables.clip
    if not settings.vocabulary:
        return concept_pool.cached_vocabulary(
            path, model, variables, names, settings.templates, detector.tokenizer
        )
    given = Vocabulary.load(settings.vocabulary)
    require_matching(given, describe_encoder(model.config, variables["params"]))
    rows = {tokenized_text(name): row for row, name in enumerate(given.names)}
    if missing := [name for name in names if tokenized_text(name) not in rows]:
        raise ConfigError(
            f"evaluation.vocabulary: {settings.vocabulary} lacks {len(missing)} of "
            f"{len(names)} classes: {missing[:5]}; give the embeddings of these classes, "
            "or leave it empty to embed their names"
        )
    order = [rows[tokenized_text(name)] for name in names]
    return Vocabulary(names, given.embeddings[order], given.templates, given.encoder)
