"""Measure a localizer's average recall over all, base and novel classes."""

import functools
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.assembly.models import compute_dtype
from regionclip_jax.assembly.optimization import build_mesh
from regionclip_jax.assembly.sources import build_boxes_source
from regionclip_jax.assembly.streams import DetectionPass
from regionclip_jax.evaluation.counts import Coverage
from regionclip_jax.evaluation.datasets import open_dataset
from regionclip_jax.evaluation.evaluators import ProposalRecall, evaluate
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.settings import EvaluationSettings, RecallSettings
from regionclip_jax.sharding.barriers import compile_barrier
from regionclip_jax.sharding.consistency import require_consistent
from regionclip_jax.sharding.global_arrays import (
    batch_sharding,
    local_rows,
    replicate,
    to_global_batch,
)
from regionclip_jax.steps.predict_step import Prediction


def check(settings: RecallSettings) -> None:
    """Open the images of an evaluation, before the training that it follows.

    Raises:
        ConfigError: as ``measure``.
    """
    source = build_boxes_source(settings, "evaluation")
    # The trained classes are not known yet.
    open_dataset(source, settings.class_split, source.category_names)
    DetectionPass(settings, source)


def measure(
    directory: Path, settings: RecallSettings | EvaluationSettings, dtype: str
) -> tuple[dict[str, float | None], Coverage]:
    """Return the metrics, and what they count.

    Metrics are ``{"AR@100": ..., "recall@100": ..., "AR@100_novel": ..., ...}`` in percent.

    Args:
        directory: holds the localizer.
        settings: images, class groups and proposals; the vocabulary is not used.
        dtype: type of the computation.
    """
    variables, card = load_localizer(directory)
    localizer = Localizer(card.architecture, compute_dtype(dtype))
    source = build_boxes_source(settings, "evaluation")
    dataset = open_dataset(source, settings.class_split, card.source.get("classes"))
    require_consistent({"evaluation": {"records": len(source), "classes": dataset.names}})
    mesh = build_mesh(settings.batch_size, "evaluation.batch_size")
    variables = replicate(variables, mesh)

    # Each process needs only its own rows.
    @compile_barrier
    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def step(variables, batch):
        return propose(localizer, variables, batch.images, batch.sizes, settings.proposals)

    batches = DetectionPass(settings, source)
    summary = evaluate(
        lambda batch: Prediction(
            detections=None,
            regions=local_rows(step(variables, to_global_batch(batch, mesh))),
            most_probable_class=None,
        ),
        dataset,
        batches,
        [ProposalRecall(dataset.groups)],
    )
    logging.info("%s: recall on the %d images of %r", directory, len(source), source)
    return summary.metrics, Coverage(summary.counts, batches.report())
