"""Build streams of batches from settings and a source."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from absl import logging

from regionclip_jax.data.loading.batching import BatchError
from regionclip_jax.data.loading.buckets import Buckets
from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.pipeline import detection_batches, image_text_batches
from regionclip_jax.data.sources.records import known_sizes
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    ConfigError,
    EvaluatedImages,
    config_context,
)
from regionclip_jax.structures import DetectionBatch, ImageTextBatch


def stream_batches(
    settings: CaptionDataSettings,
    source,
    *,
    tokenizer: str,
    batch_size: int,
    seed: int,
    start_record: int,
) -> Iterator[ImageTextBatch]:
    """Yield this process's batches from a record count on; count and limit skipped records.

    Args:
        tokenizer: name of the trained model's tokenizer (``text.tokenizer``).
    """
    with config_context("data"):
        counter = SkipCounter(settings.max_skipped_fraction, settings.min_skipped_records)
        stream = image_text_batches(
            source,
            settings,
            Shard(batch_size, jax.process_index(), jax.process_count()),
            tokenizer=tokenizer,
            seed=seed,
            start_record=start_record,
            buckets=assign_buckets(settings, source),
        )
    return counted(stream, counter, lambda batch, texts: len(batch.mask), "data")


def assign_buckets(settings: CaptionDataSettings | BoxDataSettings, source) -> Buckets | None:
    """Return the bucket of each image; None without grouping or without known sizes."""
    if not settings.group_by_canvas or len(settings.canvas_sizes) == 1:
        return None
    sizes = known_sizes(source)
    if sizes is None:
        logging.warning(
            "%r does not know the sizes of its images: they come in any order, and nearly every "
            "batch needs the largest canvas",
            source,
        )
        return None
    buckets = Buckets(
        sizes,
        settings.canvas_sizes,
        settings.short_sides,
        settings.max_long_side,
        settings.resize_method,
    )
    logging.info("%r: batches of one canvas each; %s", source, buckets)
    return buckets


def detection_pass(settings: EvaluatedImages, source) -> Iterator[DetectionBatch]:
    """Yield this process's batches of one pass; count and limit skipped records."""
    with config_context("evaluation"):
        counter = SkipCounter(settings.max_skipped_fraction, minimum=1)
        shard = Shard(settings.batch_size, jax.process_index(), jax.process_count())
        stream = detection_batches(source, settings, shard)
    # A row of padding is not a record.
    return counted(
        stream, counter, lambda batch, texts: int(batch.mask.sum()) + len(texts), "evaluation"
    )


def counted(stream: Iterator, counter: SkipCounter, count: Callable, key: str) -> Iterator:
    """Yield the batches of a stream, and count its skipped records.

    Args:
        count: (batch, texts of its skipped records) -> number of records.
        key: key of the settings, for errors.
    """
    with contextlib.closing(stream):
        try:
            for batch, texts in stream:
                counter.add(count(batch, texts), texts)
                yield batch
        except BatchError as error:
            raise ConfigError(f"{key}: {error}") from error
