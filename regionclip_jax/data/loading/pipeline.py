"""Pipeline from a source to batches: sampling order, shard of the process, threads or workers.

The sample at global position i is a pure function of (seed, i): record, mirror and caption.
Processes take contiguous parts of each global batch. So a run stopped after n records continues
exactly at ``start_record=n``, with any number of processes, workers and threads. Only that number
has to be saved. Grain's own ``random_map`` draws by the position within a process, so the draws
would change with the number of processes.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence

import grain

from regionclip_jax.data.loading.batching import batch_detection, batch_image_text, batch_images
from regionclip_jax.data.loading.buckets import Buckets, Size, check_canvases
from regionclip_jax.data.loading.detection_examples import (
    DetectionAugmentation,
    LoadTrainingDetection,
)
from regionclip_jax.data.loading.examples import (
    ImageLoading,
    LoadDetection,
    LoadImage,
    LoadImageText,
    Shard,
)
from regionclip_jax.data.loading.mixing import Mixture
from regionclip_jax.data.loading.order import epoch_order, shuffled_order
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord, Source
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    EvaluatedImages,
    ImageDataSettings,
)
from regionclip_jax.structures import DetectionBatch, ImageBatch, ImageTextBatch
from regionclip_jax.text.tokenizer import TokenizerSource


def image_text_batches(
    source: Source[ImageTextRecord],
    settings: CaptionDataSettings,
    shard: Shard,
    *,
    tokenizer: TokenizerSource,
    seed: int,
    start_record: int,
    buckets: Buckets | None = None,
) -> Iterator[tuple[ImageTextBatch, list[str]]]:
    """Stream this process's part of each batch and its skipped records, without end.

    Args:
        source: image-text records, or a ``Mixture`` of such sources.
        settings: sizes, mirrors, tokens, threads and workers. Workers need a main module guarded by
            ``if __name__ == "__main__"``, and parsed absl flags (``app.run``).
        shard: the global batch and this process's part of it.
        tokenizer: of the model.
        seed: seed of the order and of every draw; from 0 to 2**32 - 1.
        start_record: number of records consumed before, over all processes.
        buckets: buckets of this source's images. Each batch then holds images of one bucket (see
            ``epoch_order``), the same in all processes. None: any images, on the smallest canvas
            that holds those of this process.

    Yields:
        ``(batch, texts)``: numpy arrays with a masked row for each skipped record, and the texts
        of the skipped records.

    Raises:
        ValueError: at once, for an empty source, a ``start_record`` between two batches, a batch
            that does not divide among the processes, canvases that are too small, or buckets of a
            mixture.
    """
    images = ImageLoading(
        settings.short_sides, settings.max_long_side, settings.resize_method, settings.canvas_sizes
    )
    _check(source, shard, images, buckets)
    _check_start(start_record, shard.batch_size)
    if isinstance(source, Mixture):
        if buckets is not None:
            raise ValueError("a mixture draws records by its weights: it takes no buckets")
        order = source.order(seed)
    else:
        order = _order(source, shard, seed, buckets)
    load = LoadImageText(
        source,
        order,
        buckets,
        shard,
        images,
        settings.flip_probability,
        settings.flip_directional_captions,
        seed,
        tokenizer,
        settings.context_length,
    )
    return (
        batch_image_text(group, canvases, settings.context_length)
        for group, canvases in _load_endlessly(load, settings, start_record)
    )


def image_batches(
    source: Source[ImageTextRecord],
    settings: ImageDataSettings,
    shard: Shard,
    *,
    seed: int,
    start_record: int,
    buckets: Buckets | None = None,
) -> Iterator[tuple[ImageBatch, list[str]]]:
    """Stream batches of images alone, without end; all else as :func:`image_text_batches`.

    Args:
        source: records with or without captions.
    """
    images = ImageLoading(
        settings.short_sides, settings.max_long_side, settings.resize_method, settings.canvas_sizes
    )
    _check(source, shard, images, buckets)
    _check_start(start_record, shard.batch_size)
    order = _order(source, shard, seed, buckets)
    load = LoadImage(source, order, buckets, shard, images, settings.flip_probability, seed)
    return (
        batch_images(group, canvases)
        for group, canvases in _load_endlessly(load, settings, start_record)
    )


def detection_batches(
    source: Source[DetectionRecord], settings: EvaluatedImages, shard: Shard
) -> Iterator[tuple[DetectionBatch, list[str]]]:
    """Stream one pass over a source in its own order, every record once, without crowd boxes.

    All processes yield the same number of batches of the same number of rows; rows past the end are
    masked.

    Args:
        settings: sizes, box rows of an image (more boxes in one image are an error), threads.
        shard: as in :func:`image_text_batches`.

    Yields:
        ``(batch, texts)`` as in :func:`image_text_batches`. A skipped record is not evaluated.

    Raises:
        ValueError: as :func:`image_text_batches`; while running, as ``batching.batch_detection``.
    """
    short_sides = None if settings.short_side is None else (settings.short_side,)
    images = ImageLoading(
        short_sides, settings.max_long_side, settings.resize_method, settings.canvas_sizes
    )
    _check(source, shard, images, buckets=None)
    num_batches = -(-len(source) // shard.batch_size)
    load = LoadDetection(source, shard, images)
    positions = range(num_batches * shard.local_batch_size)
    groups = _load_groups(load, positions, settings.num_threads, num_workers=0)
    return (batch_detection(group, images.canvas_sizes, settings.max_boxes) for group in groups)


def detection_training_batches(
    source: Source[DetectionRecord],
    settings: BoxDataSettings,
    shard: Shard,
    *,
    order: grain.MapDataset[int],
    seed: int,
    start_record: int,
    buckets: Buckets | None = None,
) -> Iterator[tuple[DetectionBatch, list[str]]]:
    """Stream this process's part of each batch for training a detector, without end.

    Arguments are those of :func:`image_text_batches`; see also ``DetectionAugmentation``.

    Args:
        source: records without crowd boxes and unwanted classes, such as a ``TrainingSet``.
        order: order of the records, of ``epoch_order``; grouped by ``buckets``, if there are any.

    Raises:
        ValueError: as in :func:`image_text_batches`; ``jitter`` together with ``short_sides``, or
            with several canvases.
    """
    jitter, sizes = settings.jitter, settings.canvas_sizes
    if jitter is not None and (settings.short_sides is not None or len(sizes) != 1):
        raise ValueError(
            f"jitter {jitter} sizes images by the one canvas: give no short_sides (found "
            f"{settings.short_sides}) and one canvas (found {sizes})"
        )
    images = ImageLoading(
        settings.short_sides, settings.max_long_side, settings.resize_method, sizes
    )
    _check(source, shard, images, buckets)
    _check_start(start_record, shard.batch_size)
    augmentation = DetectionAugmentation(images, jitter, settings.flip_probability)
    load = LoadTrainingDetection(source, order, buckets, shard, augmentation, seed)
    return (
        batch_detection(group, canvases, settings.max_boxes, getattr(source, "mask_size", None))
        for group, canvases in _load_endlessly(load, settings, start_record)
    )


def _order(
    source: Source, shard: Shard, seed: int, buckets: Buckets | None
) -> grain.MapDataset[int]:
    """Return the order of a source's records, in batches of one bucket each if there are any."""
    if buckets is None:
        return shuffled_order(0, len(source), seed)
    return epoch_order(len(source), seed=seed, batch_size=shard.batch_size, buckets=buckets.numbers)


def _check_start(start_record: int, batch_size: int) -> None:
    if start_record < 0 or start_record % batch_size:
        raise ValueError(
            f"start_record {start_record} is not a multiple of batch_size {batch_size}: resume "
            "with the batch size of the run that is resumed, or start a new run"
        )


def _check(source: Source, shard: Shard, images: ImageLoading, buckets: Buckets | None) -> None:
    if not len(source):
        raise ValueError(f"{source!r} has no records: check its path and split")
    if (images.short_sides is None) != (images.max_long_side is None):
        raise ValueError(
            f"short sides {images.short_sides} and max_long_side {images.max_long_side}: give "
            "both, or neither to keep images at their own size"
        )
    check_canvases(
        images.canvas_sizes,
        short_side=None if images.short_sides is None else max(images.short_sides),
        max_long_side=images.max_long_side,
        images_together=shard.local_batch_size if buckets is None else shard.batch_size,
        process_count=shard.count,
        grouped=buckets is not None,
    )
    if (
        buckets is not None
        and shard.batch_size > 1
        and buckets.shared(set(buckets.numbers.tolist())) is None
    ):
        raise ValueError(
            f"no canvas of {images.canvas_sizes} holds what all the others hold, as the batch of "
            "an epoch's rest may have to: add one as high as the highest and as wide as the widest"
        )


def _load_endlessly(
    load: LoadImageText | LoadImage | LoadTrainingDetection,
    settings: CaptionDataSettings | ImageDataSettings | BoxDataSettings,
    start_record: int,
) -> Iterator[tuple[list, Sequence[Size]]]:
    """Yield the examples of each batch, and the canvases that it may have: one with buckets."""
    shard, order, buckets = load.shard, load.order, load.buckets
    positions = range(start_record // shard.count, sys.maxsize)
    groups = _load_groups(load, positions, settings.num_threads, settings.num_workers)
    with contextlib.closing(groups):
        for first in itertools.count(start_record, shard.batch_size):
            canvases = settings.canvas_sizes
            if buckets is not None:
                records = [order[position] for position in range(first, first + shard.batch_size)]
                canvases = [buckets.shared(set(buckets.numbers[records].tolist()))]
            yield next(groups), canvases


def _load_groups(
    load: LoadImageText | LoadImage | LoadDetection | LoadTrainingDetection,
    positions: range,
    num_threads: int,
    num_workers: int,
) -> Iterator[list]:
    """Load local positions in threads and, if any, worker processes; yield them batch by batch.

    Examples are batched after loading, because threads and workers load single examples, and a
    batch of examples needs its own canvas and the texts of its skipped records.
    """
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    examples = grain.MapDataset.range(positions.start, positions.stop).map(load)
    dataset = examples.to_iter_dataset(options, allow_nones=True)  # None is a row of padding
    if num_workers:
        workers = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=2 * max(1, num_threads)
        )
        dataset = dataset.mp_prefetch(workers)
    iterator = iter(dataset.batch(load.shard.local_batch_size, batch_fn=list))
    try:
        yield from iterator
    finally:
        iterator.close()
