"""Source to batches: order, share of the process, threads or worker processes, batches.

The record at global position i of a run is a pure function of (seed, i): its place in the shuffled
order, its mirror, its caption. Processes take contiguous parts of each global batch. So a run that
is stopped after n records continues at ``start_record=n`` exactly, with any number of processes,
workers and threads, and nothing but the number has to be saved.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence

import grain

from regionclip_jax.data.batching import batch_detection, batch_image_text
from regionclip_jax.data.canvas import CanvasPlan, Size, check_canvases
from regionclip_jax.data.detection_examples import DetectionAugmentation, LoadTrainingDetection
from regionclip_jax.data.examples import ImageLoading, LoadDetection, LoadImageText, Shard
from regionclip_jax.data.mixing import Mixture
from regionclip_jax.data.order import EpochOrder
from regionclip_jax.data.records import DetectionRecord, ImageTextRecord, Source
from regionclip_jax.data.transforms import check_resize_method
from regionclip_jax.structures import DetectionBatch, ImageTextBatch
from regionclip_jax.text.tokenizer import CONTEXT_LENGTH


def image_text_batches(
    source: Source[ImageTextRecord],
    *,
    batch_size: int,
    short_sides: Sequence[int] | None,
    max_long_side: int | None,
    resize_method: str,
    canvas_sizes: Sequence[Size],
    plan: CanvasPlan | None = None,
    flip_probability: float,
    flip_directional_captions: bool,
    seed: int,
    start_record: int,
    num_threads: int,
    num_workers: int,
    process_index: int = 0,
    process_count: int = 1,
    context_length: int = CONTEXT_LENGTH,
    keep_end_token: bool = True,
    shuffle: bool = True,
) -> Iterator[tuple[ImageTextBatch, list[str]]]:
    """An endless stream of this process's part of each batch, and the faults in it.

    Args:
        source: of image-text records, or a ``Mixture`` of such.
        batch_size: of the global batch B; this process yields ``B / process_count`` rows.
        short_sides, max_long_side, resize_method: see ``transforms``; one of the short sides is
            drawn at each visit. Both None keep every picture at its own size.
        canvas_sizes: ``(height, width)`` to choose from, see ``canvas.check_canvases``.
        plan: of the same canvases for this source. Batches then hold pictures of one of them, as
            ``EpochOrder`` says, and all processes know which. None: any pictures, on the smallest
            canvas that holds those of this process.
        flip_probability: of a mirrored picture.
        flip_directional_captions: False leaves pictures whose caption says "left" or "right".
        seed: of the order and of all that is drawn for a visit; from 0 to 2**32 - 1.
        start_record: number of records, over all processes, that were consumed before.
        num_threads: that load in parallel, in each worker; 0 loads in the caller.
        num_workers: processes to spawn for loading; 0 uses threads alone. Workers need a main
            module guarded by ``if __name__ == "__main__"``, and parsed absl flags (``app.run``).
        context_length: tokens a caption is cut or padded to.
        keep_end_token: see ``text.tokenizer.tokenize``.
        shuffle: anew in every epoch; False keeps the order of the source, which no plan does.

    Yields:
        ``(batch, faults)``: numpy arrays, a masked row for each fault, and the texts of the faults.

    Raises:
        ValueError: at once, for an empty source, a ``start_record`` between two batches, a batch
            that does not divide among the processes, an unknown resize method, canvases that are
            too small, or a plan of them without shuffling.
    """
    shard, images = _check(
        source,
        Shard(batch_size, process_index, process_count),
        ImageLoading(_as_tuple(short_sides), max_long_side, resize_method, _as_sizes(canvas_sizes)),
        plan,
    )
    _check_start(start_record, batch_size)
    if plan is not None and not shuffle:
        raise ValueError("a plan of canvases groups records anew in every epoch: shuffle, or none")
    if isinstance(source, Mixture):
        if plan is not None:
            raise ValueError("a mixture draws records by its weights: it takes no plan of canvases")
        order = source.order(seed, shuffle)
    elif plan is None:
        order = grain.MapDataset.range(len(source))
        order = (order.seed(seed).shuffle() if shuffle else order).repeat()
    else:
        order = EpochOrder(len(source), seed=seed, batch_size=batch_size, kinds=plan.numbers)
    load = LoadImageText(
        source,
        order,
        plan,
        shard,
        images,
        flip_probability,
        flip_directional_captions,
        seed,
        context_length,
        keep_end_token,
    )
    positions = grain.MapDataset.range(start_record // process_count, sys.maxsize)
    examples = _iterate(positions.map(load), num_threads, num_workers)
    return (
        batch_image_text(group, canvases, context_length)
        for group, canvases in zip(
            _groups(examples, shard.local_batch_size),
            _canvases(images.canvas_sizes, plan, order, start_record // batch_size),
            strict=False,
        )
    )


def detection_batches(
    source: Source[DetectionRecord],
    *,
    batch_size: int,
    short_side: int | None,
    max_long_side: int | None,
    resize_method: str,
    canvas_sizes: Sequence[Size],
    max_boxes: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int,
) -> Iterator[tuple[DetectionBatch, list[str]]]:
    """One pass over a source in its own order, every record once, without crowd boxes.

    All processes yield the same number of batches of the same number of rows; rows past the end are
    masked. Arguments are those of :func:`image_text_batches`.

    Args:
        short_side: of all pictures.
        max_boxes: G, number of box rows an image; more boxes in one image are an error.

    Yields:
        ``(batch, faults)`` as :func:`image_text_batches`. A fault is a record that was not
        evaluated.

    Raises:
        ValueError: as :func:`image_text_batches`; while running, as ``batching.batch_detection``.
    """
    short_sides = None if short_side is None else (short_side,)
    shard, images = _check(
        source,
        Shard(batch_size, process_index, process_count),
        ImageLoading(short_sides, max_long_side, resize_method, _as_sizes(canvas_sizes)),
        plan=None,
    )
    num_batches = -(-len(source) // batch_size)
    positions = grain.MapDataset.range(num_batches * shard.local_batch_size)
    load = LoadDetection(source, shard, images)
    examples = _iterate(positions.map(load), num_threads, num_workers=0)
    return (
        batch_detection(group, images.canvas_sizes, max_boxes)
        for group in _groups(examples, shard.local_batch_size)
    )


def detection_training_batches(
    source: Source[DetectionRecord],
    *,
    order: EpochOrder,
    batch_size: int,
    short_sides: Sequence[int] | None,
    max_long_side: int | None,
    resize_method: str,
    jitter: tuple[float, float] | None,
    canvas_sizes: Sequence[Size],
    plan: CanvasPlan | None = None,
    max_boxes: int,
    flip_probability: float,
    seed: int,
    start_record: int,
    num_threads: int,
    num_workers: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[DetectionBatch, list[str]]]:
    """An endless stream of this process's part of each batch to train a detector on.

    Arguments are those of :func:`image_text_batches`; see also ``DetectionAugmentation``.

    Args:
        source: without crowd boxes and unwanted classes, such as a ``TrainingSet``.
        order: which record comes when; with a ``plan`` its kinds are the plan's numbers.
        max_boxes: G, number of box rows an image.

    Raises:
        ValueError: as :func:`image_text_batches`; ``jitter`` together with ``short_sides``, or on
            several canvases.
    """
    sizes = _as_sizes(canvas_sizes)
    if jitter is not None and (short_sides is not None or len(sizes) != 1):
        raise ValueError(
            f"jitter {jitter} sizes pictures by the one canvas: give no short_sides (found "
            f"{short_sides}) and one canvas (found {sizes})"
        )
    shard, images = _check(
        source,
        Shard(batch_size, process_index, process_count),
        ImageLoading(_as_tuple(short_sides), max_long_side, resize_method, sizes),
        plan,
    )
    _check_start(start_record, batch_size)
    augmentation = DetectionAugmentation(
        images.short_sides,
        max_long_side,
        jitter,
        resize_method,
        sizes,
        flip_probability,
    )
    load = LoadTrainingDetection(source, order, plan, shard, augmentation, seed)
    positions = grain.MapDataset.range(start_record // process_count, sys.maxsize)
    examples = _iterate(positions.map(load), num_threads, num_workers)
    return (
        batch_detection(group, canvases, max_boxes)
        for group, canvases in zip(
            _groups(examples, shard.local_batch_size),
            _canvases(images.canvas_sizes, plan, order, start_record // batch_size),
            strict=False,
        )
    )


def _check_start(start_record: int, batch_size: int) -> None:
    if start_record < 0 or start_record % batch_size:
        raise ValueError(
            f"start_record {start_record} is not a multiple of batch_size {batch_size}: resume "
            "with the batch size of the run that is resumed, or start a new run"
        )


def _as_sizes(canvas_sizes: Sequence[Size]) -> tuple[Size, ...]:
    return tuple((int(height), int(width)) for height, width in canvas_sizes)


def _as_tuple(short_sides: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(short_sides) if short_sides else None


def _canvases(
    canvas_sizes: tuple[Size, ...],
    plan: CanvasPlan | None,
    order: grain.MapDataset | EpochOrder,
    first: int,
) -> Iterator[tuple[Size, ...]]:
    """Those that each global batch, from number ``first`` on, may have: with a plan just one."""
    if plan is None:
        return itertools.repeat(canvas_sizes)
    return ((plan.shared(order.kinds_of_batch(number)),) for number in itertools.count(first))


def _check(
    source: Source, shard: Shard, images: ImageLoading, plan: CanvasPlan | None
) -> tuple[Shard, ImageLoading]:
    if not len(source):
        raise ValueError(f"{source!r} has no records: check its path and split")
    check_resize_method(images.resize_method)
    if (images.short_sides is None) != (images.max_long_side is None):
        raise ValueError(
            f"short sides {images.short_sides} and max_long_side {images.max_long_side}: give "
            "both, or neither to keep pictures at their own size"
        )
    check_canvases(
        images.canvas_sizes,
        short_side=None if images.short_sides is None else max(images.short_sides),
        max_long_side=images.max_long_side,
        images_together=shard.local_batch_size if plan is None else shard.batch_size,
        process_count=shard.count,
        agreed=plan is not None,
    )
    if (
        plan is not None
        and shard.batch_size > 1
        and plan.shared(set(plan.numbers.tolist())) is None
    ):
        raise ValueError(
            f"no canvas of {images.canvas_sizes} holds what all the others hold, as the batch of "
            "an epoch's rest may have to: add one as high as the highest and as wide as the widest"
        )
    return shard, images


def _iterate(examples: grain.MapDataset, num_threads: int, num_workers: int) -> Iterator:
    """Elements in order, loaded ahead by threads and, if any, worker processes."""
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    dataset = examples.to_iter_dataset(options, allow_nones=True)  # None is a row of padding
    if num_workers:
        workers = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=2 * max(1, num_threads)
        )
        dataset = dataset.mp_prefetch(workers)
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _groups(examples: Iterator, size: int) -> Iterator[list]:
    while group := list(itertools.islice(examples, size)):
        yield group
