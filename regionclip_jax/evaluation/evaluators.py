"""Evaluators: each collects predictions batch by batch, and summarizes them as metrics.

``evaluate`` runs a prediction function over batches and gives every prediction to every evaluator.
A new metric is one more ``Evaluator``.
"""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from regionclip_jax.data.sources.annotation_files import FREQUENCIES, as_annotation_file
from regionclip_jax.evaluation import recall, recognition
from regionclip_jax.evaluation.coco import coco_ap50
from regionclip_jax.evaluation.counts import Counts, count
from regionclip_jax.evaluation.datasets import Dataset
from regionclip_jax.evaluation.error_analysis import find_errors
from regionclip_jax.evaluation.ground_truth import GroundTruth, coco_ground_truth, require_masks
from regionclip_jax.evaluation.lvis import lvis_ap
from regionclip_jax.evaluation.predictions import coco_results, to_original_xywh
from regionclip_jax.extras import require_extra
from regionclip_jax.sharding.global_arrays import gather_json
from regionclip_jax.steps.predict_step import Prediction
from regionclip_jax.structures import DetectionBatch

_COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_LVIS_NUMBERS = ("AP", "APr", "APc", "APf", "AP50", "AP75", "APs", "APm", "APl")


class Summary(NamedTuple):
    """Metrics in percent (None: not defined for the data), and other results by name.

    ``counts`` has what entered the metrics, by "AP", "top1" or "recall".
    """

    metrics: dict[str, float | None]
    details: dict[str, Any]
    counts: dict[str, Counts]


class Evaluator(abc.ABC):
    """Collects one JSON record per image; processes exchange the records at the end.

    Args:
        gather: records of this process -> records of all processes.
    """

    def __init__(self, gather: Callable[[list], list] = gather_json):
        self._gather = gather
        self._records: list[list] = []

    def add(self, batch: DetectionBatch, prediction: Prediction) -> None:
        """Collect the predictions of a batch; both are NumPy arrays. Padding rows are dropped."""
        for row in np.flatnonzero(batch.mask):
            record = self._record(batch, prediction, int(row))
            self._records.append([int(batch.image_ids[row]), record])

    def summarize(self) -> Summary:
        """Return the metrics over all images of all processes; every process must call it.

        The first of several images with one id counts; the others are among the exceptions.
        """
        records = self._gather(self._records)
        unique: dict[int, Any] = {}
        for image_id, record in records:
            unique.setdefault(image_id, record)
        summary = self._summarize({image_id: unique[image_id] for image_id in sorted(unique)})
        if repeated := len(records) - len(unique):
            for found in summary.counts.values():
                found.exceptions["images_of_a_repeated_id_ignored"] = repeated
        return summary

    @abc.abstractmethod
    def _record(self, batch: DetectionBatch, prediction: Prediction, row: int) -> Any:
        """Return the record of one image, in JSON values."""

    @abc.abstractmethod
    def _summarize(self, records: Mapping[int, Any]) -> Summary:
        """Summarize the records by image id, in ascending order."""


def evaluate(
    predict: Callable[[DetectionBatch], Prediction],
    dataset: Dataset,
    batches: Iterable[DetectionBatch],
    evaluators: Sequence[Evaluator],
) -> Summary:
    """Predict all batches and return the evaluators' joint summary.

    Args:
        predict: batch -> prediction, with this process's rows as NumPy arrays.
        batches: this process's batches, with the classes of the source.
    """
    for batch in batches:
        batch = dataset.keep_classes(batch)
        prediction = predict(batch)
        for evaluator in evaluators:
            evaluator.add(batch, prediction)
    joint = Summary({}, {}, {})
    for evaluator in evaluators:
        for whole, part in zip(joint, evaluator.summarize(), strict=True):
            whole.update(part)
    return joint


class Detection(Evaluator):
    """Average precision by the official metric of the data.

    Details: ``results`` (in COCO's format; of a split, those on the evaluated images),
    ``per_category``, ``errors`` (``error_analysis.Errors`` of the boxes), ``num_images``
    (predicted) and ``num_annotated`` (in the data).

    Args:
        dataset: its ground truth is that of the annotation file, else that of the batches.
        max_detections: number of best detections counted for each image (COCO: and category).
        given_boxes: the regions are the ground-truth boxes. AP is then the same at every IoU
            threshold, so COCO's numbers are AP50 of the groups alone.
        with_masks: also compare masks, if the annotations have them.
        save: called with ``results`` before they are scored, so that an error of the metric does
            not lose them.

    Raises:
        ConfigError: the metric refuses the annotation file. This must not happen after the last
            image.
        MissingExtra: the metric needs a package that is not installed.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        max_detections: int,
        given_boxes: bool,
        with_masks: bool = False,
        save: Callable[[list[dict]], object] = lambda results: None,
        gather: Callable[[list], list] = gather_json,
    ):
        super().__init__(gather)
        if dataset.metric == "lvis":
            require_extra("lvis", "LVIS's metric")
        self._dataset, self._max_detections = dataset, max_detections
        self._given_boxes, self._save = given_boxes, save
        self._truth = dataset.ground_truth()
        self._compare = ("bbox",)
        if with_masks and self._truth:
            try:
                require_masks(self._truth, ())
                self._compare = ("bbox", "segm")
            except ValueError as error:
                logging.warning("boxes are compared, masks are not: %s", error)

    def _record(self, batch, prediction, row):
        record = {"results": coco_results(batch, prediction.detections, row, self._dataset.ids)}
        if self._truth is None:
            real = batch.box_mask[row]
            boxes = to_original_xywh(
                batch.boxes[row][real], sizes=batch.sizes[row], scales=batch.scales[row]
            )
            classes = [self._dataset.ids[index] for index in batch.classes[row][real]]
            record |= {"boxes": boxes.tolist(), "categories": classes}
        return record

    def _summarize(self, records):
        truth = self._dataset.keep_ground_truth(self._truth or self._truth_of_batches(records))
        counted = {image["id"] for image in truth.images}
        results = [
            result
            for image_id, record in records.items()
            if image_id in counted
            for result in record["results"]
        ]
        self._save(results)
        num_annotated = len(self._truth.images if self._truth else self._dataset.source)
        details = {"results": results, "num_images": len(records), "num_annotated": num_annotated}
        metrics: dict[str, float | None] = {}
        for compare in self._compare:
            scores = self._scores(truth, results, compare)
            if compare == "bbox":
                details["per_category"] = scores["per_category"]
            metrics |= self._select(scores["summary"], compare)
        details["errors"] = find_errors(
            truth,
            results,
            category_groups=self._category_groups(),
            max_detections=self._max_detections,
            federated=self._dataset.metric == "lvis",
        )
        return Summary(metrics, details, {"AP": self._count(truth, records)})

    def _count(self, truth: GroundTruth, records: Mapping[int, Any]) -> Counts:
        dataset = self._dataset
        index = {category: i for i, category in enumerate(dataset.ids)}
        boxes = {image["id"]: [] for image in truth.images}
        num_crowd = num_flat = 0
        for annotation in truth.annotations:
            if annotation["iscrowd"]:
                num_crowd += 1
                continue
            boxes[annotation["image_id"]].append(index[annotation["category_id"]])
            num_flat += min(annotation["bbox"][2:]) <= 0
        counted = boxes.keys()
        annotated = {image["id"] for image in self._truth.images} if self._truth else {*records}
        exceptions = {
            "crowd_boxes_ignored": num_crowd,
            "boxes_without_area_missed": num_flat,
            "images_without_prediction_missed": len(counted - records.keys()),
            "images_of_other_classes_ignored": len(annotated - counted),
        }
        return count(
            boxes.values(), dataset.groups, names=dataset.source_names, exceptions=exceptions
        )

    def _scores(self, truth: GroundTruth, results: list[dict], compare) -> dict[str, dict]:
        limit = self._max_detections
        if self._dataset.metric == "lvis":
            return lvis_ap(truth, results, max_detections=limit, compare=compare)
        return coco_ap50(
            truth,
            results,
            category_groups=self._category_groups(),
            max_detections=limit,
            compare=compare,
        )

    def _category_groups(self) -> dict[str, set[int]]:
        ids = self._dataset.ids
        return {g: {ids[i] for i in members} for g, members in self._dataset.groups.items()}

    def _select(self, summary: Mapping, compare: str) -> dict[str, float | None]:
        if self._dataset.metric == "lvis":
            known = {f"AP{letter}" for letter in getattr(self._dataset.source, "frequencies", ())}
            absent = {f"AP{letter}" for letter in FREQUENCIES} - known
            chosen = {name: summary[name] for name in _LVIS_NUMBERS if name not in absent}
        elif compare == "segm":
            chosen = dict(summary)
        else:
            chosen = {f"AP50_{group}": summary[f"AP50_{group}"] for group in self._dataset.groups}
            if not self._given_boxes:
                chosen |= {name: summary[name] for name in _COCO_NUMBERS}
        prefix = "mask_" if compare == "segm" else ""
        return {f"{prefix}{name}": value for name, value in chosen.items()}

    def _truth_of_batches(self, records: Mapping[int, Any]) -> GroundTruth:
        annotations = [
            {"image_id": image_id, "category_id": category, "bbox": box}
            for image_id, record in records.items()
            for box, category in zip(record["boxes"], record["categories"], strict=True)
        ]
        content = {
            "images": [{"id": image_id} for image_id in records],
            "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
            "categories": [
                {"id": category, "name": name}
                for category, name in zip(
                    self._dataset.ids, self._dataset.source_names, strict=True
                )
            ],
        }
        return coco_ground_truth(as_annotation_file(repr(self._dataset.source), content))


class RegionRecognition(Evaluator):
    """Top-1 accuracy of given boxes, for each group of classes.

    Details: ``confused``, the most frequent confusions. The prediction's regions are the boxes of
    the batch.
    """

    def __init__(self, dataset: Dataset, gather: Callable[[list], list] = gather_json):
        super().__init__(gather)
        self._dataset = dataset

    def _record(self, batch, prediction, row):
        real = np.asarray(batch.box_mask[row], bool)
        predicted = np.asarray(prediction.most_probable_class[row])[real]
        return [predicted.tolist(), np.asarray(batch.classes[row])[real].tolist()]

    def _summarize(self, records):
        predicted = np.array([p for mine, _ in records.values() for p in mine], np.int64)
        actual = np.array([a for _, mine in records.values() for a in mine], np.int64)
        groups = self._dataset.groups
        top1 = recognition.region_top1(predicted, actual, class_groups=groups)
        confused = recognition.most_confused(predicted, actual, names=self._dataset.names)
        metrics = {f"top1_{group}": top1[f"top1_{group}"] for group in groups}
        counts = count(
            (mine for _, mine in records.values()), groups, names=self._dataset.source_names
        )
        return Summary(metrics, {"confused": confused}, {"top1": counts})


class ProposalRecall(Evaluator):
    """Recall of the prediction's regions at IoU 0.5, and average recall, for groups of classes.

    Metrics are those of ``recall.limits_of`` the number of regions of an image.

    Args:
        groups: name -> classes; "all" has no suffix in the names of the metrics.
    """

    def __init__(
        self, groups: Mapping[str, Set[int]], gather: Callable[[list], list] = gather_json
    ):
        super().__init__(gather)
        self._groups = groups

    def _record(self, batch, prediction, row):
        boxes = batch.boxes[row][batch.box_mask[row]]
        regions = prediction.regions
        ranks = recall.found_at(boxes, regions.boxes[row][regions.mask[row]])
        classes = batch.classes[row][batch.box_mask[row]]
        return [ranks.tolist(), classes.tolist(), len(regions.boxes[row])]

    def _summarize(self, records):
        limits = recall.limits_of(max((number for *_, number in records.values()), default=0))
        metrics: dict[str, float | None] = {}
        for group, members in self._groups.items():
            chosen = [
                np.array(ranks, np.int32).reshape(len(recall.THRESHOLDS), -1)[
                    :, np.isin(classes, sorted(members))
                ]
                for ranks, classes, _ in records.values()
            ]
            suffix = "" if group == "all" else f"_{group}"
            values = recall.summarize_recall(chosen, limits=limits)
            metrics |= {f"{name}{suffix}": value for name, value in values.items()}
        counts = count((classes for _, classes, _ in records.values()), self._groups)
        return Summary(metrics, {}, {"recall": counts})
