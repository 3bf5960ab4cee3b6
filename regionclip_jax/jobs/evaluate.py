"""Zero-shot recognition of ground-truth boxes: the table of a paper, on any COCO-format data."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.results import write_detections, write_results
from regionclip_jax.config import ConfigError, EvaluateConfig, EvaluationSection, as_plain
from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES, NOVEL_SHAPES
from regionclip_jax.evaluation import coco, predictions, recognition
from regionclip_jax.jobs import assembly, concept_pool
from regionclip_jax.models.clip import CLIP
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.reporting.writers import make_writer
from regionclip_jax.sharding.global_arrays import (
    gather_json,
    local_rows,
    replicate,
    to_global_batch,
)
from regionclip_jax.steps.predict_step import make_recognize_step
from regionclip_jax.text.categories import COCO_BASE_48, COCO_NOVEL_17
from regionclip_jax.text.prompts import prepare_class_name

_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": {"novel": tuple(NOVEL_SHAPES), "base": tuple(BASE_SHAPES)},
    "coco_48_17": {"novel": COCO_NOVEL_17, "base": COCO_BASE_48},
    "none": {},
}


class Classes(NamedTuple):
    """The classes an evaluation is about: names, COCO ids, row in the source, groups by index."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    source_rows: tuple[int, ...]
    groups: dict[str, set[int]]


class Evaluation(NamedTuple):
    """Numbers in percent, and everything behind them."""

    metrics: dict[str, float | None]
    per_category: dict[str, dict]
    confused: list
    results: list[dict]


def run(config: EvaluateConfig, workdir: Path) -> dict:
    """Evaluates every model of the config on the same boxes; writes ``results.json``."""
    evaluations = {
        name: evaluate_model(Path(path), config.evaluation, config.dtype)
        for name, path in config.models.items()
    }
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    if jax.process_index() == 0:
        details = {
            "boxes": "ground truth",
            "models": config.models,
            "evaluation": as_plain(config.evaluation),
            "per_category": {n: e.per_category for n, e in evaluations.items()},
        }
        write_results(workdir / "results.json", metrics, details=details)
        for name, evaluation in evaluations.items():
            write_detections(workdir / f"detections_{name}.json", evaluation.results)
        report(workdir, metrics, step=0)
    return metrics


def report(workdir: Path, metrics: Mapping[str, Mapping[str, float | None]], step: int) -> None:
    """Prints the table and writes the numbers to TensorBoard."""
    print(comparison_table(metrics), flush=True)
    with contextlib.closing(make_writer(workdir, just_logging=False)) as writer:
        for name, values in metrics.items():
            known = {f"{name}/{k}": v for k, v in values.items() if v is not None}
            writer.write_scalars(step, known)


def evaluate_model(directory: Path, section: EvaluationSection, dtype: str) -> Evaluation:
    """Recognition of ground-truth boxes by one model directory."""
    variables, card = load_model(directory)
    model = CLIP(card.architecture, dtype=assembly.compute_dtype(dtype))
    source = assembly.build_detection_source(section)
    classes = _classes(source, section)
    vocabulary = concept_pool.embed_names(
        model,
        variables,
        [prepare_class_name(name) for name in classes.names],
        section.templates,
    )
    mesh = assembly.build_mesh(section.batch_size, "evaluation.batch_size")
    step = jax.jit(
        make_recognize_step(
            model,
            temperature=section.temperature,
            max_detections=section.max_detections,
            regions_per_chunk=section.regions_per_chunk,
            roi_align=section.roi_align,
        )
    )
    variables, embeddings = replicate((variables, vocabulary.embeddings), mesh)

    def predict(batch):
        recognition_ = local_rows(step(variables, embeddings, to_global_batch(batch, mesh)))
        return recognition_.detections, recognition_.top_class

    truth = []

    def batches():
        for batch in assembly.detection_pass(section, source):
            batch = _only(batch, classes)
            truth.extend(_truth(batch, classes))
            yield batch

    found = predictions.run(predict, batches(), category_ids=classes.ids, gather=gather_json)
    dataset = _coco_dataset(gather_json(truth), classes)
    groups = {
        name: {classes.ids[index] for index in members} for name, members in classes.groups.items()
    }
    scores = coco.coco_ap50(
        dataset,
        found.results,
        category_groups=groups,
        max_detections=section.max_detections,
    )
    top1 = recognition.region_top1(found.predicted, found.actual, class_groups=classes.groups)
    confused = recognition.most_confused(found.predicted, found.actual, names=classes.names)
    logging.info(
        "%s: %d images, %d boxes; most confused: %s",
        directory,
        found.num_images,
        len(found.actual),
        ", ".join(f"{true} as {guess} ({n})" for true, guess, n in confused[:5]),
    )
    # On ground-truth boxes AP is the same at every IoU threshold, so AP50 says it all.
    metrics = {f"AP50_{group}": scores["summary"][f"AP50_{group}"] for group in classes.groups}
    return Evaluation(
        metrics=metrics | {f"top1_{group}": top1[f"top1_{group}"] for group in classes.groups},
        per_category=scores["per_category"],
        confused=confused,
        results=found.results,
    )


def _classes(source, section: EvaluationSection) -> Classes:
    """The source's classes, or those of the split it is evaluated with.

    Raises:
        ConfigError: the split names classes the source does not have.
    """
    names = tuple(source.category_names)
    if not names:
        raise ConfigError(f"evaluation.path: {source!r} names no categories; use detection data")
    ids = tuple(getattr(source, "category_ids", range(1, len(names) + 1)))
    groups = assembly.choose(_SPLITS, section.class_split, "evaluation.class_split")
    wanted = [name for members in groups.values() for name in members]
    if unknown := sorted(set(wanted) - set(names)):
        raise ConfigError(
            f"evaluation.class_split: {section.class_split!r} names {unknown[:5]}, which "
            f"{source!r} does not have; choose another split or 'none'"
        )
    rows = [row for row, name in enumerate(names) if not wanted or name in set(wanted)]
    chosen = tuple(names[row] for row in rows)
    by_index = {
        group: {chosen.index(name) for name in members} for group, members in groups.items()
    }
    return Classes(
        names=chosen,
        ids=tuple(int(ids[row]) for row in rows),
        source_rows=tuple(rows),
        groups=by_index | {"all": set(range(len(chosen)))},
    )


def _only(batch, classes: Classes):
    """The batch without boxes of other classes, its classes counted among ``classes``."""
    index = np.full(max(classes.source_rows) + 2, -1)
    index[list(classes.source_rows)] = np.arange(len(classes.source_rows))
    mapped = index[np.minimum(batch.classes, len(index) - 1)]
    keep = batch.box_mask & (mapped >= 0)
    return batch.replace(classes=np.where(keep, mapped, 0).astype(np.int32), box_mask=keep)


def _truth(batch, classes: Classes) -> list[dict]:
    """Ground truth of a batch in original pixels, as JSON values."""
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
    """Ground truth in COCO's format."""
    annotations = [
        {"image_id": image["id"], "category_id": category, "bbox": box}
        for image in images
        for box, category in zip(image["boxes"], image["categories"], strict=True)
    ]
    return {
        "images": [{"id": image["id"]} for image in images],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [
            {"id": i, "name": name} for i, name in zip(classes.ids, classes.names, strict=True)
        ],
    }
