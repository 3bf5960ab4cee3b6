"""Evaluate zero-shot recognition of given boxes, or detection, with the metrics of the paper.

Each model classifies regions (ground-truth boxes, a localizer's proposals, or sliding windows) by
text embeddings of the class names. The results have the official metrics of the data. Beside AP
they have region top-1 on given boxes, or the recall of the proposals, which separates bad
recognition from a bad localizer.
"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.detector_heads import has_heads, load_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.results import write_detections, write_results
from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder, require_matching
from regionclip_jax.evaluation import coco, lvis, predictions, recall, recognition
from regionclip_jax.evaluation.ground_truth import keep_categories, read_coco, read_lvis
from regionclip_jax.jobs import assembly, concept_pool, detection_gallery, streams
from regionclip_jax.jobs.evaluated_classes import LVIS, Classes, choose_classes, keep_only
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.reporting.galleries import write_png
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.reporting.writers import make_writer
from regionclip_jax.settings import ConfigError, EvaluateSettings, EvaluationSettings, as_plain
from regionclip_jax.sharding.barriers import compile_barrier
from regionclip_jax.sharding.consistency import require_consistent
from regionclip_jax.sharding.global_arrays import (
    batch_sharding,
    gather_json,
    local_rows,
    replicate,
    to_global_batch,
)
from regionclip_jax.steps.predict_step import DetectorVariables, make_predict_step
from regionclip_jax.structures import DetectionBatch

GROUND_TRUTH, LOCALIZER = "ground_truth", "localizer"
_COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_LVIS_NUMBERS = ("AP", "APr", "APc", "APf", "AP50", "AP75", "APs", "APm", "APl")


class Evaluation(NamedTuple):
    """Metrics in percent, with their details."""

    metrics: dict[str, float | None]
    per_category: dict[str, dict]
    confused: list
    results: list[dict]
    # Boxes, weights and images of the evaluation.
    saw: dict[str, str]
    images_per_second: float | None
    class_names: dict[int, str]


def run(settings: EvaluateSettings, workdir: Path) -> dict:
    """Evaluate every model of the recipe on the same images, and write ``results.json``."""
    assembly.log_dtype("evaluation", settings.dtype)
    evaluations = {
        name: evaluate_model(
            Path(path), settings.evaluation, settings.dtype, workdir / f"vocabulary_{name}.npz"
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
            "dtype": assembly.resolve_dtype(settings.dtype),
            "evaluation": as_plain(settings.evaluation),
            "per_category": {n: e.per_category for n, e in evaluations.items()},
        }
        write_results(workdir / "results.json", metrics, details=details)
        for name, evaluation in evaluations.items():
            write_detections(workdir / f"detections_{name}.json", evaluation.results)
        picture = detection_gallery.draw(
            streams.build_boxes_source(settings.evaluation, "evaluation"),
            {name: evaluation.results for name, evaluation in evaluations.items()},
            class_names=next(iter(evaluations.values())).class_names,
            all_annotated=settings.evaluation.class_split != LVIS,
            subtitle="; ".join(f"{n}: {e.saw['boxes']}" for n, e in evaluations.items()),
        )
        write_png(workdir / "detections.png", picture)
        for name, evaluation in evaluations.items():
            rate = evaluation.images_per_second
            print(f"{name}: {', '.join(f'{k}: {v}' for k, v in evaluation.saw.items())}"
                  + (f", {rate:.1f} images/s" if rate else ""))  # fmt: skip
        report(workdir, metrics, step=0, picture=picture)
    return metrics


def report(
    workdir: Path,
    metrics: Mapping[str, Mapping[str, float | None]],
    step: int,
    picture: np.ndarray,
) -> None:
    """Print the table, and write the metrics and the image to TensorBoard."""
    print(comparison_table(metrics), flush=True)
    with contextlib.closing(make_writer(workdir, just_logging=False)) as writer:
        for name, values in metrics.items():
            known = {f"{name}/{k}": v for k, v in values.items() if v is not None}
            writer.write_scalars(step, known)
        writer.write_images(step, {"regions": picture[None].astype(np.float32) / 255})


def evaluate_model(
    directory: Path, settings: EvaluationSettings, dtype: str, vocabulary_path: Path
) -> Evaluation:
    """Evaluate one model directory on all images.

    Args:
        directory: model directory.
        settings: regions, classes and images.
        dtype: type of the computation.
        vocabulary_path: cache of the embedded class names.

    Raises:
        CheckpointMismatch: the model, its localizer or the vocabulary is missing or does not match.
        ConfigError: the settings contradict each other or the data.
        InconsistentHosts: processes of this run found different data.
    """
    variables, card = load_model(directory)
    model = CLIP(card.architecture, dtype=assembly.compute_dtype(dtype))
    source = streams.build_boxes_source(settings, "evaluation")
    heads, heads_card = load_heads(directory) if has_heads(directory) else (None, None)
    classes = choose_classes(source, settings, heads_card and heads_card.source.get("classes"))
    num_pictures = _require_official(settings, source)
    require_consistent({"evaluation": {"records": len(source), "classes": classes.names}})
    saw = {"boxes": settings.regions.replace("_", " "), "weights": _origin(directory, card)}
    localizer = localizer_variables = None
    if settings.regions == LOCALIZER:
        localizer_variables, localizer_card = load_localizer(settings.localizer or directory)
        localizer = Localizer(localizer_card.architecture, model.dtype)
        saw["boxes"] = f"proposals of {_origin(settings.localizer or directory, localizer_card)}"
    box_head = mask_head = None
    if heads is not None and settings.regions != GROUND_TRUTH:
        box_head = {"params": heads["box_head"]}
        saw["boxes"] += ", moved by the detector's box head"
        if "mask_head" in heads:
            mask_head = {"params": heads["mask_head"]}
    vocabulary = _vocabulary(settings, classes, model, variables, vocabulary_path)
    mesh = assembly.build_mesh(settings.batch_size, "evaluation.batch_size")
    predict_step = make_predict_step(
        model,
        settings.detection,
        assembly.build_find_regions(settings, localizer),
    )
    # Each process needs only its own rows.
    step = compile_barrier(jax.jit(predict_step, out_shardings=batch_sharding(mesh)))
    frozen = replicate(
        DetectorVariables(
            variables, vocabulary.embeddings, localizer_variables, box_head, mask_head
        ),
        mesh,
    )
    on_given_boxes = settings.regions == GROUND_TRUTH
    truth, ranks, clock = [], {}, _Clock()

    def predict(batch: DetectionBatch):
        found = local_rows(step(frozen, to_global_batch(batch, mesh)))
        clock.count(int(batch.mask.sum()))
        if on_given_boxes:
            return found.detections, found.most_probable_class
        for row in np.flatnonzero(batch.mask):
            boxes = batch.boxes[row][batch.box_mask[row]]
            proposals = found.regions.boxes[row][found.regions.mask[row]]
            ranks[int(batch.image_ids[row])] = recall.found_at(boxes, proposals).tolist()
        return found.detections, None

    def batches():
        for batch in streams.detection_pass(settings, source):
            batch = keep_only(batch, classes)
            truth.extend(_truth(batch, classes))
            yield batch

    found = predictions.run(predict, batches(), category_ids=classes.ids, gather=gather_json)
    metrics, per_category, results = _official(
        settings, source, classes, truth, found.results, draws_masks=mask_head is not None
    )
    if found.num_images < num_pictures:
        saw["pictures"] = f"{found.num_images} of {num_pictures}, the others cannot be used: " + (
            "AP counts what they show as missed, all other numbers leave them out"
            if hasattr(source, "annotations_path")
            else "all numbers leave them out"
        )
        logging.warning("%s: pictures: %s", directory, saw["pictures"])
    confused = []
    if on_given_boxes:
        top1 = recognition.region_top1(found.predicted, found.actual, class_groups=classes.groups)
        metrics |= {f"top1_{group}": top1[f"top1_{group}"] for group in classes.groups}
        confused = recognition.most_confused(found.predicted, found.actual, names=classes.names)
    else:
        everywhere = dict(gather_json(list(ranks.items())))
        metrics |= recall.summarize_recall([np.array(r, np.int32) for r in everywhere.values()])
    logging.info(
        "%s: %d images, %d boxes found%s",
        directory,
        found.num_images,
        len(found.results),
        "".join(f"; {true} as {guess} ({n})" for true, guess, n in confused[:5]),
    )
    return Evaluation(
        metrics=metrics,
        per_category=per_category,
        confused=confused,
        results=results,
        saw=saw,
        images_per_second=clock.rate,
        class_names=dict(zip(classes.ids, classes.names, strict=True)),
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


def _vocabulary(settings, classes: Classes, model, variables, path: Path) -> Vocabulary:
    """Return the class embeddings in the order of the classes."""
    if not settings.vocabulary:
        return concept_pool.cached_vocabulary(
            path, model, variables, classes.names, settings.templates
        )
    given = Vocabulary.load(settings.vocabulary)
    require_matching(given, describe_encoder(model.config, variables["params"]))
    rows = {name: row for row, name in enumerate(given.names)}
    if missing := [name for name in classes.names if name not in rows]:
        raise ConfigError(
            f"evaluation.vocabulary: {settings.vocabulary} lacks {len(missing)} of "
            f"{len(classes.names)} classes: {missing[:5]}; give the embeddings of these classes, "
            "or leave it empty to embed their names"
        )
    order = [rows[name] for name in classes.names]
    return Vocabulary(classes.names, given.embeddings[order], given.templates, given.encoder)


def _require_official(settings: EvaluationSettings, source) -> int:
    """Check the annotation file with the metrics' own reader, and return its number of images.

    That reader is stricter than the source's, and must not fail after the last image.

    Raises:
        ConfigError: the metrics cannot use the file.
    """
    path = getattr(source, "annotations_path", None)
    if path is None:
        return len(source)
    with assembly.config_context("evaluation.path"):
        read = read_lvis if settings.class_split == LVIS else read_coco
        return len(read(path).images)


def _official(
    settings, source, classes: Classes, truth, results, draws_masks: bool
) -> tuple[dict, dict, list]:
    """Return the data's official metrics: summary, per category, and the evaluated results."""
    path = getattr(source, "annotations_path", None)
    if settings.class_split == LVIS:
        limit = settings.detection.max_detections
        scores = lvis.lvis_ap(path, results, max_detections=limit)
        summary = {k: scores["summary"][k] for k in _LVIS_NUMBERS}
        if draws_masks:
            masks = lvis.lvis_ap(path, results, max_detections=limit, compare="segm")
            summary |= {f"mask_{k}": masks["summary"][k] for k in _LVIS_NUMBERS}
        return summary, scores["per_category"], results
    if path is None:
        dataset = _coco_dataset(gather_json(truth), classes)
    else:
        # The file has areas and crowds, which batches lack. For a split, only images with a box of
        # its classes count, as in the reference.
        dataset = path
        if len(classes.ids) < len(source.category_names):
            dataset = keep_categories(path, classes.source_names)
            kept = {image["id"] for image in dataset["images"]}
            results = [result for result in results if result["image_id"] in kept]
    groups = {
        name: {classes.ids[index] for index in members} for name, members in classes.groups.items()
    }
    scores = coco.coco_ap50(
        dataset, results, category_groups=groups, max_detections=settings.detection.max_detections
    )
    summary = {f"AP50_{group}": scores["summary"][f"AP50_{group}"] for group in classes.groups}
    if settings.regions != GROUND_TRUTH:
        # On given boxes AP is the same at every IoU threshold, so AP50 is sufficient.
        summary |= {key: scores["summary"][key] for key in _COCO_NUMBERS}
    if draws_masks and path is not None:
        masks = coco.coco_ap50(
            dataset,
            results,
            category_groups=groups,
            max_detections=settings.detection.max_detections,
            compare="segm",
        )["summary"]
        summary |= {f"mask_{key}": value for key, value in masks.items()}
    return summary, scores["per_category"], results


def _truth(batch, classes: Classes) -> list[dict]:
    """Return the ground truth of a batch in original pixels, as JSON values."""
    images = []
    for row in np.flatnonzero(batch.mask):
        boxes = batch.boxes[row][batch.box_mask[row]]
        xywh = predictions.to_original_xywh(boxes, sizes=batch.sizes[row], scales=batch.scales[row])
        kinds = batch.classes[row][batch.box_mask[row]]
        images.append(
            {
                "id": int(batch.image_ids[row]),
                "boxes": xywh.tolist(),
                "categories": [classes.ids[k] for k in kinds],
            }
        )
    return images


def _coco_dataset(images: list[dict], classes: Classes) -> dict:
    """Convert ground truth to COCO's format."""
    annotations = [
        {"image_id": image["id"], "category_id": category, "bbox": box}
        for image in images
        for box, category in zip(image["boxes"], image["categories"], strict=True)
    ]
    return {
        "images": [{"id": image["id"]} for image in images],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [
            {"id": i, "name": name}
            for i, name in zip(classes.ids, classes.source_names, strict=True)
        ],
    }
