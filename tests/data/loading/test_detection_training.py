"""Training samples of detectors: boxes of the trained classes at the positions of their pixels."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from regionclip_jax.data.loading.buckets import Buckets
from regionclip_jax.data.loading.decoding import decode_image
from regionclip_jax.data.loading.detection_examples import DetectionAugmentation, augment
from regionclip_jax.data.loading.examples import ImageLoading, Shard
from regionclip_jax.data.loading.order import epoch_order
from regionclip_jax.data.loading.pipeline import detection_training_batches
from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.loading.transforms import crop_masks
from regionclip_jax.data.sources.coco_folder import CocoInstancesSource
from regionclip_jax.data.sources.object_masks import decode_runs, object_mask, rasterize
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.settings import BoxDataSettings

CATEGORIES = {7: "cat", 3: "dog", 12: "sheep"}
# image id: (height, width), [(category, xywh, crowd)]
IMAGES = {
    1: ((40, 60), [(7, (10, 5, 20, 15), 0), (3, (30, 20, 10, 10), 0)]),
    2: ((60, 40), [(12, (5, 5, 10, 30), 0)]),
    3: ((50, 50), []),
    4: ((40, 60), [(7, (0, 0, 60, 40), 1)]),
    5: ((40, 60), [(7, (40, 10, 15, 20), 0), (12, (1, 1, 8, 8), 0), (7, (2, 2, 0, 5), 0)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO folder where each object is a gray rectangle and its segmentation is the rectangle."""
    root = tmp_path_factory.mktemp("coco")
    (root / "train").mkdir()
    (root / "annotations").mkdir()
    annotations = []
    for image_id, ((height, width), objects) in IMAGES.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        for category, (x, y, w, h), crowd in objects:
            if not crowd:
                pixels[y : y + h, x : x + w] = 60 + 10 * category
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "iscrowd": crowd,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(root / "train" / f"{image_id}.png")
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
            for i, ((h, w), _) in IMAGES.items()
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def training_set(folder, names=("sheep", "cat"), **options):
    source = CocoInstancesSource(folder, "train", **options)
    return TrainingSet(source, names, max_boxes=3)


def test_boxes_of_the_classes_keep_their_order_and_other_boxes_are_counted(folder):
    data = training_set(folder)
    assert data.category_names == ("sheep", "cat") and len(data) == 3
    assert [data[i].image_id for i in range(3)] == [1, 2, 5]
    assert [data[i].classes.tolist() for i in range(3)] == [[1], [0], [1, 0]]
    assert [data.classes_of(i).tolist() for i in range(3)] == [[1], [0], [1, 0]]
    assert data.sizes().tolist() == [[40, 60], [60, 40], [40, 60]]
    assert data.report == {
        "images": 3,
        "boxes": 4,
        "crowd boxes skipped": 1,
        "boxes of other classes skipped": 1,
        "images without a box skipped": 2,
    }


def test_an_annotation_file_of_the_user_needs_no_folder_layout(folder, tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes((folder / "annotations" / "instances_train.json").read_bytes())
    source = CocoInstancesSource(folder / "train", "", annotations=file)
    assert source.category_names == ("dog", "cat", "sheep") and len(source) == 5


@pytest.mark.parametrize(
    ("names", "max_boxes", "message"),
    [
        (("shep",), 3, "has no class 'shep'; did you mean 'sheep'"),
        (("cat", "cat"), 3, r"classes \['cat'\] are named twice"),
        (("cat", "sheep"), 1, "has 2 boxes, more than max_boxes 1"),
    ],
)
def test_unknown_classes_and_too_many_boxes_are_refused_before_the_first_step(
    folder, names, max_boxes, message
):
    with pytest.raises(ValueError, match=message):
        TrainingSet(CocoInstancesSource(folder, "train"), names, max_boxes=max_boxes)


def stream(folder, *, start_record=0, process=(0, 1), batch_size=2, grouped=False, **changes):
    data = training_set(folder)
    options = dict(
        short_sides=(40, 50, 64),
        max_long_side=96,
        canvas_sizes=((64, 96), (96, 64), (96, 96)),
        max_boxes=3,
        num_threads=1,
    )
    settings = BoxDataSettings(**options | changes)
    buckets = None
    if grouped:
        names = ("canvas_sizes", "short_sides", "max_long_side", "resize_method")
        buckets = Buckets(data.sizes(), *(getattr(settings, name) for name in names))
    return detection_training_batches(
        data,
        settings,
        Shard(batch_size, *process),
        order=epoch_order(
            len(data),
            seed=1,
            batch_size=batch_size,
            buckets=None if buckets is None else buckets.numbers,
        ),
        buckets=buckets,
        seed=1,
        start_record=start_record,
    )


def pixels_of(image, level):
    """Return the bounds of the pixels that are nearer to a gray level than to black."""
    near = np.abs(image[..., 0].astype(int) - level) < 0.5 * level
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_boxes_are_resized_and_flipped_with_their_pixels(folder):
    widths = set()
    for batch, texts in itertools.islice(stream(folder), 12):
        assert not texts and batch.mask.all()
        for row in range(2):
            height, width = batch.sizes[row]
            widths.add(int(width))
            image = batch.images[row, :height, :width]
            for box, label in zip(batch.boxes[row], batch.classes[row], strict=True):
                if (box == 0).all() or (image[..., 0] > 0).sum() == 0:
                    continue
                level = {0: 180, 1: 130}[int(label)]
                if batch.box_mask[row].sum() == 1 and batch.image_ids[row] == 2:
                    np.testing.assert_allclose(box, pixels_of(image, level), atol=1.5)
    assert len(widths) > 3


def test_a_resumed_stream_equals_an_uninterrupted_one(folder):
    whole = list(itertools.islice(stream(folder), 6))
    rest = list(itertools.islice(stream(folder, start_record=6), 3))
    for (expected, _), (actual, _) in zip(whole[3:], rest, strict=True):
        for name in ("images", "boxes", "classes", "image_ids"):
            np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


@pytest.mark.parametrize(
    "options", [{"canvas_sizes": ((96, 96),)}, {"grouped": True}], ids=["one canvas", "grouped"]
)
def test_two_processes_load_the_halves_of_each_batch(folder, options):
    options = options | {"batch_size": 4}
    whole = list(itertools.islice(stream(folder, **options), 6))
    for index in range(2):
        halves = itertools.islice(stream(folder, process=(index, 2), **options), 6)
        for (expected, _), (actual, _) in zip(whole, halves, strict=True):
            half = slice(2 * index, 2 * index + 2)
            np.testing.assert_array_equal(actual.images, expected.images[half])
            np.testing.assert_array_equal(actual.boxes, expected.boxes[half])


def test_grouped_batches_have_the_canvas_of_the_largest_short_side(folder):
    batches = [batch for batch, _ in itertools.islice(stream(folder, grouped=True), 12)]
    assert all(batch.mask.all() for batch in batches)
    # At short side 64 the images are 64 x 96 (image ids 1 and 5) and 96 x 64 (2).
    canvas_of = {(1, 5): (64, 96), (2,): (96, 64), (1, 2): (96, 96), (2, 5): (96, 96)}
    for batch in batches:
        ids = tuple(sorted(set(batch.image_ids.tolist())))
        assert batch.images.shape[1:3] == canvas_of.get(ids, (64, 96)), ids
    assert len({tuple(size) for batch in batches for size in batch.sizes.tolist()}) > 3


def test_jitter_crops_images_and_boxes_to_the_canvas(folder):
    record = training_set(folder, mask_size=8)[1]
    original = decode_image(record.image, source="test", key=record.key)
    augmentation = DetectionAugmentation(
        ImageLoading(None, None, "bilinear_round", ((64, 64),)),
        jitter=(0.3, 3.0),
        flip_probability=0.5,
    )
    empty = larger = 0
    for seed in range(40):
        example = augment(record, original, augmentation, np.random.default_rng(seed))
        assert max(example.image.shape[:2]) <= 64
        larger += example.scale[0] > 64 / 60
        if not len(example.boxes):
            empty += 1
            continue
        np.testing.assert_allclose(example.boxes[0], pixels_of(example.image, 180), atol=2.5)
        # A cropped rectangle still fills its box.
        assert example.masks.all()
    assert empty < 20 and larger > 5


def test_jitter_and_short_sides_exclude_each_other(folder):
    with pytest.raises(ValueError, match="jitter .* give no short_sides"):
        stream(folder, jitter=(0.1, 2.0))


def test_batches_hold_masks_of_objects_on_request(folder):
    data = training_set(folder, mask_size=6)
    batches = detection_training_batches(
        data,
        BoxDataSettings(
            short_sides=None,
            max_long_side=None,
            canvas_sizes=((64, 64),),
            max_boxes=3,
            flip_probability=0.0,
            num_threads=0,
        ),
        Shard(3, 0, 1),
        order=epoch_order(len(data), seed=0, batch_size=3),
        seed=0,
        start_record=0,
    )
    batch, _ = next(batches)
    assert batch.object_masks.shape == (3, 3, 6, 6)
    np.testing.assert_array_equal(batch.object_masks.all((2, 3)), batch.box_mask)


def test_a_mask_is_the_part_of_the_box_covered_by_polygons():
    triangle = [[0.0, 0.0, 16.0, 0.0, 0.0, 16.0]]
    raster = rasterize(triangle, np.array([0, 0, 16, 16], np.float32), 16)
    y, x = np.mgrid[:16, :16] + 0.5
    sure = np.abs(x + y - 16) > 1.5
    np.testing.assert_array_equal(raster[sure], (x + y < 16)[sure])
    left = crop_masks(raster[None], np.array([[0, 0, 16, 16]]), np.array([[0, 0, 8, 16]]))
    np.testing.assert_array_equal(left[0, :, ::2], raster[:, :8])


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_give_the_mask_of_their_pixels(compressed, seed):
    pixels = np.random.default_rng(seed).random((20, 30)) < 0.4
    pixels[4:12, 6:22] = True
    encoded = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    runs = {"size": [20, 30], "counts": encoded["counts"].decode()}
    if not compressed:
        columns = pixels.T.ravel()
        ends = np.flatnonzero(np.diff(columns, prepend=columns[0], append=not columns[-1]))
        lengths = np.diff(ends, prepend=0).tolist()
        runs["counts"] = [0, *lengths] if columns[0] else lengths
    np.testing.assert_array_equal(decode_runs(runs, 20, 30), pixels)
    box = np.array([6, 4, 22, 12], np.float32)
    assert object_mask(runs, box, (20, 30), 8).all()
    whole = object_mask(runs, np.array([0, 0, 30, 20], np.float32), (20, 30), 10)
    # Each cell has 3 x 2 pixels; those in the rectangle are set.
    assert whole[2:6, 2:7].all() and whole.dtype == np.uint8


@pytest.mark.parametrize("counts", ["", "6", "zzzz", "é", [3, -1, 598], [599], [600.0], 7, None])
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises(ValueError, match="run lengths .*: expected numbers with the sum 600"):
        decode_runs({"size": [20, 30], "counts": counts}, 20, 30)


@pytest.mark.parametrize(
    "segmentation", [None, [], {"counts": [3], "size": [2, 2]}, [[1, 2, 3]], [["a"] * 6], {}]
)
def test_the_record_of_an_object_without_a_usable_outline_is_skipped(folder, segmentation):
    source = CocoInstancesSource(folder, "train", mask_size=4)
    source._images[0].boxes.outlines[0] = segmentation
    with pytest.raises(RecordError, match=r"record 1\.png: object 0: "):
        source[0]


def test_a_batch_without_a_readable_image_has_empty_masks_like_the_others(folder):
    source = CocoInstancesSource(folder, "train", mask_size=6)
    data = TrainingSet(source, ("sheep", "cat"), max_boxes=3)
    source._images[0].boxes.outlines[0] = None
    settings = BoxDataSettings(
        short_sides=None, max_long_side=None, canvas_sizes=((64, 64),), max_boxes=3, num_threads=2
    )
    batches = detection_training_batches(
        data,
        settings,
        Shard(1, 0, 1),
        order=epoch_order(len(data), seed=0, batch_size=1),
        seed=0,
        start_record=0,
    )
    skipped = 0
    for batch, texts in itertools.islice(batches, 3):
        assert batch.object_masks.shape == (1, 3, 6, 6)
        skipped += len(texts)
        assert batch.mask.tolist() == [not texts] and batch.object_masks.any() != bool(texts)
    assert skipped == 1


def test_a_set_of_crowds_is_refused_with_the_reason(folder):
    source = CocoInstancesSource(folder, "train")
    for image in source._images:
        image.boxes.crowd[:] = True
    with pytest.raises(ValueError, match=r"6 crowd boxes skipped.*iscrowd = 1 are groups.*set it"):
        TrainingSet(source, ("sheep", "cat"), max_boxes=3)


def test_a_corrupt_image_is_a_masked_row_and_a_skipped_record(folder, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    for path in (folder / "train").iterdir():
        (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    name = "annotations/instances_train.json"
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    broken = io.BytesIO()
    Image.new("RGB", (60, 40)).save(broken, "PNG")
    (tmp_path / "train" / "5.png").write_bytes(broken.getvalue()[:40])
    texts = []
    for batch, some in itertools.islice(stream(tmp_path), 6):
        texts += some
        assert (~batch.mask).sum() == len(some)
        assert not batch.box_mask[~batch.mask].any()
    assert texts and all("record 5.png" in text for text in texts)
