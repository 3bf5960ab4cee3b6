"""Measure a localizer's average recall over all, base and novel classes."""

import functools
from pathlib import Path

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.evaluation import recall
from regionclip_jax.jobs import assembly, streams
from regionclip_jax.jobs.evaluated_classes import choose_classes, keep_only
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.settings import EvaluationSettings, RecallSettings
from regionclip_jax.sharding.barriers import compile_barrier
from regionclip_jax.sharding.consistency import require_consistent
from regionclip_jax.sharding.global_arrays import (
    batch_sharding,
    gather_json,
    local_rows,
    replicate,
    to_global_batch,
)


def measure(
    directory: Path, settings: RecallSettings | EvaluationSettings, dtype: str
) -> dict[str, float | None]:
    """Return ``{"AR@100": ..., "recall@100": ..., "AR@100_novel": ..., ...}`` in percent.

    Args:
        directory: holds the localizer.
        settings: images, class groups and proposals; the vocabulary is not used.
        dtype: type of the computation.
    """
    variables, card = load_localizer(directory)
    localizer = Localizer(card.architecture, assembly.compute_dtype(dtype))
    source = streams.build_boxes_source(settings, "evaluation")
    classes = choose_classes(source, settings, card.source.get("classes"))
    require_consistent({"evaluation": {"records": len(source), "classes": classes.names}})
    mesh = assembly.build_mesh(settings.batch_size, "evaluation.batch_size")
    variables = replicate(variables, mesh)

    # Each process needs only its own rows.
    @compile_barrier
    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def step(variables, batch):
        return propose(
            localizer,
            variables,
            batch.images,
            batch.sizes,
            settings.proposals,
        )

    found = []
    for batch in streams.detection_pass(settings, source):
        batch = keep_only(batch, classes)
        regions = local_rows(step(variables, to_global_batch(batch, mesh)))
        for row in np.flatnonzero(batch.mask):
            boxes = batch.boxes[row][batch.box_mask[row]]
            ranks = recall.found_at(boxes, regions.boxes[row][regions.mask[row]])
            kinds = batch.classes[row][batch.box_mask[row]]
            found.append([int(batch.image_ids[row]), ranks.tolist(), kinds.tolist()])
    everywhere = dict((image, (ranks, kinds)) for image, ranks, kinds in gather_json(found))
    logging.info("%s: recall on %d of %d images", directory, len(everywhere), len(source))
    summary = {}
    for group, members in classes.groups.items():
        chosen = [
            np.array(ranks, np.int32).reshape(len(recall.THRESHOLDS), -1)[
                :, np.isin(kinds, sorted(members))
            ]
            for ranks, kinds in everywhere.values()
        ]
        suffix = "" if group == "all" else f"_{group}"
        values = recall.summarize_recall(chosen)
        summary |= {f"{name}{suffix}": value for name, value in values.items()}
    return summary
