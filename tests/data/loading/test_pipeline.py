import dataclasses
import itertools

import numpy as np
import pytest
from absl import flags

from regionclip_jax.data.loading.buckets import Buckets
from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.mixing import Mixture
from regionclip_jax.data.loading.pipeline import detection_batches, image_text_batches
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord
from regionclip_jax.settings import CaptionDataSettings, EvaluatedImages
from regionclip_jax.text.tokenizer import TokenizerSource

NUM_RECORDS = 11


class ListSource:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def __repr__(self):
        return "ListSource()"


@pytest.fixture(scope="module")
def records(encode_image):
    return [
        ImageTextRecord(f"k{i}", encode_image(i), (f"number {i}", f"another {i}"))
        for i in range(NUM_RECORDS)
    ]


@pytest.fixture(scope="module")
def source(records):
    return ListSource(records)


def stream(source, **changes):
    arguments = {
        "short_sides": None,
        "max_long_side": None,
        "canvas_sizes": ((16, 16), (32, 32)),
        "num_threads": 2,
    }
    how = {"tokenizer": TokenizerSource("clip"), "seed": 7, "start_record": 0}
    shard = {"batch_size": 4, "process_index": 0, "process_count": 1}
    for name, value in changes.items():
        known = next((part for part in (shard, how) if name in part), None)
        if name == "buckets":
            known = how
        (arguments if known is None else known)[name] = value
    settings = CaptionDataSettings(**arguments)
    return image_text_batches(source, settings, Shard(*shard.values()), **how)


def take(count, batches):
    return list(itertools.islice(batches, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for (a, texts_a), (b, texts_b) in zip(first, second, strict=True):
        assert texts_a == texts_b
        for name in ("images", "sizes", "tokens", "mask"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def rows(batches):
    """Return the image and tokens of every row, in order."""
    return [
        (batch.images[i].tobytes(), batch.tokens[i].tobytes())
        for batch, _ in batches
        for i in range(len(batch.mask))
    ]


def test_every_record_is_sampled_once_in_an_epoch_and_epochs_differ(source, records):
    batches = take(11, stream(source, flip_probability=0.0))
    images = [image for image, _ in rows(batches)]
    epochs = [images[i : i + NUM_RECORDS] for i in range(0, 44, NUM_RECORDS)]
    assert len(set(epochs[0])) == NUM_RECORDS
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_later_samples_of_a_record_have_other_captions_and_flips(source):
    samples = rows(take(40, stream(ListSource(source.records[:1]))))
    assert len({image for image, _ in samples}) == 2 and len({text for _, text in samples}) == 2


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"num_threads": 5}])
def test_the_number_of_threads_changes_nothing(source, changes):
    assert_same(take(6, stream(source)), take(6, stream(source, **changes)))


def test_another_seed_gives_another_stream(source):
    assert rows(take(2, stream(source))) != rows(take(2, stream(source, seed=8)))


@pytest.mark.parametrize("start", [4, 12, 40])
def test_starting_at_a_record_equals_continuing(source, start):
    expected = take(start // 4 + 3, stream(source))[start // 4 :]
    assert_same(take(3, stream(source, start_record=start)), expected)


def test_processes_share_each_global_batch_in_order(source):
    whole = take(5, stream(source, canvas_sizes=((16, 16),)))
    parts = [
        take(5, stream(source, canvas_sizes=((16, 16),), process_index=i, process_count=2))
        for i in range(2)
    ]
    for (batch, _), *parts_of_batch in zip(whole, *parts, strict=True):
        for name in ("images", "sizes", "tokens", "mask"):
            joined = np.concatenate([getattr(part, name) for part, _ in parts_of_batch])
            np.testing.assert_array_equal(getattr(batch, name), joined)


def test_worker_processes_change_nothing(records, tmp_path):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    write_array_record(records, tmp_path / "set", 4, {})
    source = ArrayRecordSource(tmp_path / "set")
    batches = stream(source, num_workers=2, num_threads=1)
    assert_same(take(4, batches), take(4, stream(source)))
    batches.close()


def test_a_skipped_record_is_a_masked_row_with_an_error_text(encode_image):
    broken = [
        ImageTextRecord("fine", encode_image(0), ("a dog",)),
        ImageTextRecord("cut", encode_image(1, file_format="JPEG")[:-200], ("a dog",)),
        ImageTextRecord("mute", encode_image(2), ("", " ")),
        ImageTextRecord("huge", encode_image(3, 40, 40), ("a dog",)),
    ]
    ((batch, texts),) = take(1, stream(ListSource(broken)))
    assert batch.mask.sum() == 1 and batch.images.shape == (4, 16, 16, 3)
    assert batch.sizes[batch.mask].tolist() == [[12, 16]] and not batch.sizes[~batch.mask].any()
    assert not batch.images[~batch.mask].any() and not batch.tokens[~batch.mask].any()
    keys = [text.removeprefix("ListSource(), record ").partition(":")[0] for text in texts]
    assert sorted(keys) == ["cut", "huge", "mute"]


def test_a_batch_of_only_skipped_records_has_the_full_shape(encode_image):
    broken = ListSource([ImageTextRecord("k", b"", ("a",))])
    ((batch, texts),) = take(1, stream(broken))
    assert batch.images.shape == (4, 16, 16, 3) and not batch.mask.any() and len(texts) == 4


def test_the_smallest_canvas_that_fits_the_batch_is_used(encode_image):
    mixed = [ImageTextRecord("k", encode_image(0, 12, side), ("a",)) for side in (9, 9, 9, 20)]
    ((batch, _),) = take(1, stream(ListSource(mixed)))
    assert batch.images.shape == (4, 32, 32, 3)
    assert sorted(batch.sizes.tolist()) == [[12, 9], [12, 9], [12, 9], [12, 20]]
    for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
        assert image[:height, :width].any(-1).all()
        assert not image[height:].any() and not image[:, width:].any()


def test_images_without_a_common_canvas_are_refused_with_the_required_size(encode_image):
    sides = ((30, 10), (10, 30))
    mixed = [ImageTextRecord("k", encode_image(0, *size), ("a",)) for size in sides]
    batches = stream(ListSource(mixed), batch_size=2, canvas_sizes=((32, 12), (12, 32)))
    with pytest.raises(ValueError, match="30 x 30"):
        next(batches)


def portrait_and_landscape(encode_image, count=21):
    """Return a source with images of two shapes, and the buckets of its images."""
    shapes = [(12, 16) if i % 3 else (16, 12) for i in range(count)]
    records = [
        ImageTextRecord(f"k{i}", encode_image(i, *shape), (f"number {i}",))
        for i, shape in enumerate(shapes)
    ]
    buckets = Buckets(np.array(shapes), ((12, 16), (16, 12), (16, 16)), None, None, "")
    return ListSource(records), {"buckets": buckets, "canvas_sizes": buckets.canvas_sizes}


def test_grouped_batches_have_one_canvas_and_sample_every_record_once_an_epoch(encode_image):
    source, grouped = portrait_and_landscape(encode_image)
    batches = take(21, stream(source, flip_probability=0.0, **grouped))
    shapes = [batch.images.shape[1:3] for batch, _ in batches]
    assert {(12, 16), (16, 12)} < set(shapes)
    # Each of the four epochs has one batch with the remaining images of both shapes.
    assert shapes.count((16, 16)) == 4
    assert all(batch.mask.all() and not texts for batch, texts in batches)
    texts = [text for _, text in rows(batches)]
    assert all(len(set(texts[i : i + 21])) == 21 for i in range(0, 84, 21))


@pytest.mark.parametrize("start", [4, 24, 40])
def test_a_resumed_grouped_stream_equals_an_uninterrupted_one(encode_image, start):
    source, grouped = portrait_and_landscape(encode_image)
    expected = take(start // 4 + 3, stream(source, **grouped))[start // 4 :]
    assert_same(take(3, stream(source, start_record=start, **grouped)), expected)


def test_processes_use_the_same_canvas_for_each_grouped_batch(encode_image):
    source, grouped = portrait_and_landscape(encode_image)
    whole = take(12, stream(source, **grouped))
    parts = [
        take(12, stream(source, process_index=i, process_count=4, **grouped)) for i in range(4)
    ]
    for (batch, _), *parts_of_batch in zip(whole, *parts, strict=True):
        for name in ("images", "sizes", "tokens", "mask"):
            joined = np.concatenate([getattr(part, name) for part, _ in parts_of_batch])
            np.testing.assert_array_equal(getattr(batch, name), joined)


def test_an_image_that_does_not_fit_its_bucket_is_a_masked_row_with_an_error_text(encode_image):
    source, grouped = portrait_and_landscape(encode_image)
    source.records[1] = ImageTextRecord("liar", encode_image(1, 16, 16), ("a",))
    texts = [text for _, some in take(21, stream(source, **grouped)) for text in some]
    assert 0 < len(texts) <= 4 and all("record liar: 16 x 16" in text for text in texts)


def test_buckets_without_a_canvas_for_the_remainder_are_refused(encode_image):
    source, _ = portrait_and_landscape(encode_image)
    sizes = ((12, 16), (16, 12))
    buckets = Buckets(np.array([(12, 16), (16, 12)] * 12)[:21], sizes, None, None, "")
    with pytest.raises(ValueError, match="an epoch's rest may have to"):
        stream(source, buckets=buckets, canvas_sizes=sizes)


def test_a_mixture_takes_no_buckets(encode_image):
    source, grouped = portrait_and_landscape(encode_image)
    with pytest.raises(ValueError, match="it takes no buckets"):
        stream(Mixture([source], [1]), **grouped)


def test_one_of_the_short_sides_is_drawn_at_each_sample(source):
    options = {"short_sides": (12, 18, 24), "max_long_side": 32, "canvas_sizes": ((32, 32),)}
    batches = take(10, stream(source, **options))
    sizes = {tuple(size) for batch, _ in batches for size in batch.sizes.tolist()}
    assert sizes == {(12, 16), (18, 24), (24, 32)}
    assert_same(take(2, stream(source, start_record=8, **options)), batches[2:4])


def test_images_with_left_or_right_in_the_caption_are_not_flipped_on_request(encode_image):
    texts = ("a cat left of a dog", "a cat beside a dog")
    source = ListSource([ImageTextRecord("k", encode_image(0), texts)])
    options = {"flip_probability": 1.0, "batch_size": 1}

    def images(flip_directional):
        batches = stream(source, flip_directional_captions=flip_directional, **options)
        return {
            (batch.tokens[0].tobytes(), batch.images[0].tobytes()) for batch, _ in take(20, batches)
        }

    kept, flipped = images(False), images(True)
    assert len(kept) == len(flipped) == 2
    assert len({image for _, image in kept}) == 2 and len({image for _, image in flipped}) == 1
    assert len(kept & flipped) == 1


def test_images_are_resized_to_the_limits(source):
    batches = stream(source, short_sides=(24,), max_long_side=30, canvas_sizes=((30, 30),))
    ((batch, _),) = take(1, batches)
    # 12 x 16: the long side would be 32, so the short one becomes int(30 * 24 / 32).
    assert batch.sizes.tolist() == [[22, 30]] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_record": 6}, "not a multiple of batch_size 4"),
        ({"process_count": 3}, "not a multiple of the 3 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index 2"),
        ({"short_sides": (20,)}, "give both"),
        ({"resize_method": "nearest"}, "resize_method: 'nearest' is none of"),
        ({"short_sides": (20,), "max_long_side": 40}, "no canvas"),
        ({"process_count": 2}, "give one size"),
        ({"source": ListSource([])}, "has no records"),
    ],
)
def test_invalid_settings_are_refused_before_the_first_record(source, changes, message):
    with pytest.raises(ValueError, match=message):
        stream(changes.pop("source", source), **changes)


def detection_record(number, image, num_boxes=2, crowd=()):
    boxes = np.tile(np.array([[1, 2, 5, 6]], np.float32), (num_boxes, 1))
    flags_ = np.isin(np.arange(num_boxes), crowd)
    classes = np.arange(num_boxes, dtype=np.int32)
    return DetectionRecord(f"d{number}", image, boxes, classes, flags_, 100 + number)


def detection_stream(source, **changes):
    arguments = {
        "batch_size": 4,
        "short_side": 24,
        "max_long_side": 64,
        "canvas_sizes": ((64, 64),),
        "max_boxes": 3,
        "num_threads": 2,
    }
    shard = changes.pop("process_index", 0), changes.pop("process_count", 1)
    settings = EvaluatedImages(**arguments | changes)
    return list(detection_batches(source, settings, Shard(settings.batch_size, *shard)))


def test_an_evaluation_pass_has_every_record_once_and_pads_its_last_batch(encode_image):
    source = ListSource([detection_record(i, encode_image(i)) for i in range(6)])
    first, last = (batch for batch, _ in detection_stream(source))
    assert first.image_ids.tolist() == [100, 101, 102, 103]
    assert last.image_ids.tolist() == [104, 105, 0, 0]
    assert last.mask.tolist() == [True, True, False, False]
    assert not last.images[2:].any() and not last.box_mask[2:].any()
    assert last.images.shape == first.images.shape == (4, 64, 64, 3)


@pytest.mark.parametrize("num_records", [1, 4, 5, 9])
def test_all_processes_yield_the_same_number_of_batches(encode_image, num_records):
    source = ListSource([detection_record(i, encode_image(i)) for i in range(num_records)])
    parts = [detection_stream(source, process_index=i, process_count=2) for i in range(2)]
    assert len(parts[0]) == len(parts[1]) == -(-num_records // 4)
    ids = [b.image_ids[b.mask].tolist() for pair in zip(*parts, strict=True) for b, _ in pair]
    assert sum(ids, []) == [100 + i for i in range(num_records)]


def test_boxes_are_scaled_with_the_image_and_crowds_are_skipped(encode_image):
    source = ListSource([detection_record(0, encode_image(0), num_boxes=3, crowd=[1])])
    ((batch, texts),) = detection_stream(source, batch_size=1)
    assert not texts and batch.sizes.tolist() == [[24, 32]] and batch.scales.tolist() == [[2, 2]]
    assert batch.boxes[0].tolist() == [[2, 4, 10, 12], [2, 4, 10, 12], [0, 0, 0, 0]]
    assert batch.classes[0].tolist() == [0, 2, 0]
    assert batch.box_mask[0].tolist() == [True, True, False]


def test_scales_map_to_original_pixels_if_the_rounding_differs_by_axis(encode_image):
    source = ListSource([detection_record(0, encode_image(0, 13, 17))])
    ((batch, _),) = detection_stream(source, batch_size=1)
    np.testing.assert_allclose(batch.sizes[0] / batch.scales[0], [13, 17], rtol=1e-6)
    scale_y, scale_x = batch.scales[0]
    expected = np.array([1, 2, 5, 6]) * [scale_x, scale_y, scale_x, scale_y]
    np.testing.assert_allclose(batch.boxes[0, 0], expected, rtol=1e-6)


def test_a_corrupt_image_in_an_evaluation_pass_is_a_masked_row_with_an_error_text(encode_image):
    source = ListSource([detection_record(0, encode_image(0)), detection_record(1, b"nothing")])
    ((batch, texts),) = detection_stream(source, batch_size=2)
    assert batch.mask.tolist() == [True, False]
    assert len(texts) == 1 and "record d1" in texts[0]


def test_image_ids_of_64_bits_reach_the_host(encode_image):
    ids = [20231115123456, 5, 5 - 2**32, -1]
    records = [
        dataclasses.replace(detection_record(0, encode_image(0)), image_id=number) for number in ids
    ]
    ((batch, _),) = detection_stream(ListSource(records))
    assert batch.image_ids.tolist() == ids


def test_an_image_of_another_size_than_annotated_is_a_masked_row_with_its_reason(encode_image):
    good = detection_record(0, encode_image(0))
    records = [dataclasses.replace(good, size=size) for size in ((12, 16), (24, 32))]
    ((batch, texts),) = detection_stream(ListSource(records), batch_size=2)
    assert batch.mask.tolist() == [True, False]
    assert len(texts) == 1 and "it was resized without its annotations" in texts[0]


def test_more_boxes_than_rows_are_refused_with_the_image_and_the_remedy(encode_image):
    source = ListSource([detection_record(0, encode_image(0), num_boxes=5)])
    with pytest.raises(ValueError, match="d0 has 5 boxes.*set max_boxes to at least 5"):
        detection_stream(source)
