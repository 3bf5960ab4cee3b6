"""Synthetic scenes: the properties of images, boxes and captions that training depends on."""

import dataclasses
import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionclip_jax.data.scenes import dataset
from regionclip_jax.data.scenes.dataset import SceneImages, draw_record, write_scenes
from regionclip_jax.data.scenes.layout import Layout, SceneObject, draw_layout
from regionclip_jax.data.scenes.outlines import OUTLINES
from regionclip_jax.data.scenes.render import MIN_VISIBLE, render
from regionclip_jax.data.scenes.sentences import describe
from regionclip_jax.data.scenes.vocabulary import (
    BACKGROUNDS,
    BASE_SHAPES,
    COLOURS,
    CONCEPTS,
    NOVEL_SHAPES,
    SHAPES,
    TEXTURES,
    TYPICAL_LOOKS,
)
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord

IMAGES = SceneImages(
    stream=1,
    seed=3,
    side=64,
    num_objects=(2, 4),
    sizes=(0.3, 0.6),
    overlap=0.3,
    typicality=0.7,
    clutter=3,
)

scene_settings = st.builds(
    SceneImages,
    stream=st.integers(0, 5),
    seed=st.integers(0, 2**31),
    side=st.sampled_from([32, 49, 96]),
    num_objects=st.sampled_from([(1, 1), (2, 4), (3, 6)]),
    sizes=st.sampled_from([(0.3, 0.5), (0.4, 0.95), (0.2, 0.3)]),
    overlap=st.sampled_from([0.0, 0.2, 0.8]),
    typicality=st.floats(0, 1),
    clutter=st.integers(0, 4),
)
indices = st.integers(0, 10**6)


def layout_of(scenes: SceneImages, rng: np.random.Generator) -> Layout:
    return draw_layout(
        rng, scenes.side, scenes.num_objects, scenes.sizes, scenes.overlap, scenes.typicality
    )


def shape_at(shape: str, centre, size: float) -> SceneObject:
    return SceneObject(shape, "red", "blue", "plain", centre, size, aspect=1.0, angle=0.0)


def shared_area(a: SceneObject, b: SceneObject) -> float:
    """Return the intersection of two objects' squares divided by the smaller square."""
    sides = [
        min(p + a.size / 2, q + b.size / 2) - max(p - a.size / 2, q - b.size / 2)
        for p, q in zip(a.centre, b.centre, strict=True)
    ]
    return max(sides[0], 0) * max(sides[1], 0) / min(a.size, b.size) ** 2


def same_record(a, b) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return type(a) is type(b) and all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.property
@given(scene_settings, indices, st.booleans())
def test_an_image_is_a_function_of_its_settings_and_index(scenes, index, with_boxes):
    first = draw_record(scenes, index, with_boxes)
    np.random.default_rng(0).random(7)
    assert same_record(first, draw_record(dataclasses.replace(scenes), index, with_boxes))


@pytest.mark.parametrize("change", ["seed", "stream", "index"])
def test_another_seed_stream_or_index_gives_another_image(change):
    index = 5 + (change == "index")
    step = {change: getattr(IMAGES, change) + 1} if change != "index" else {}
    other = draw_record(dataclasses.replace(IMAGES, **step), index, True)
    assert draw_record(IMAGES, 5, True).image != other.image


@pytest.mark.property
@given(scene_settings, indices)
def test_boxes_change_neither_the_image_nor_its_caption(scenes, index):
    with_boxes = draw_record(scenes, index, True)
    without = draw_record(scenes, index, False)
    assert isinstance(with_boxes, DetectionRecord) and isinstance(without, ImageTextRecord)
    assert (without.key, without.image, without.captions) == (
        with_boxes.key,
        with_boxes.image,
        with_boxes.captions,
    )


@pytest.mark.property
@given(scene_settings, indices)
def test_boxes_lie_inside_a_square_image_and_have_an_area(scenes, index):
    record = draw_record(scenes, index, True)
    image = Image.open(io.BytesIO(record.image))
    assert (image.format, image.mode, image.size) == ("BMP", "RGB", (scenes.side,) * 2)
    assert record.image_id == index + 1 and not record.crowd.any()
    assert len(record.boxes) == len(record.classes) <= scenes.num_objects[1]
    assert record.boxes.min(initial=0) >= 0 and record.boxes.max(initial=0) <= scenes.side
    assert (record.boxes[:, 2:] - record.boxes[:, :2]).min(initial=1) > 0
    assert set(record.classes.tolist()) <= set(range(len(SHAPES)))


@pytest.mark.property
@given(scene_settings, indices)
def test_the_caption_names_exactly_the_objects_with_boxes(scenes, index):
    record = draw_record(scenes, index, True)
    (caption,) = record.captions
    words = re.findall(r"[a-z]+", caption)
    named = sorted(word for word in words if word in SHAPES)
    assert named == sorted(SHAPES[k] for k in record.classes), caption
    # Captions use only words of the vocabulary.
    known = {*SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS}
    known |= set("a an and in the on photo of picture with there is nothing".split())
    assert set(words) <= known, caption


@pytest.mark.property
@given(scene_settings, indices)
def test_objects_are_within_the_limits_of_overlap_size_and_number(scenes, index):
    layout = layout_of(scenes, np.random.default_rng(index))
    objects = layout.objects
    assert 1 <= len(objects) <= scenes.num_objects[1] and layout.background in BACKGROUNDS
    for number, one in enumerate(objects):
        assert scenes.sizes[0] <= one.size / scenes.side * (1 + 1e-9)
        assert one.size / scenes.side <= scenes.sizes[1] * (1 + 1e-9)
        assert one.colour != one.second_colour
        for other in objects[:number]:
            assert shared_area(one, other) <= scenes.overlap + 1e-9


def test_typical_looks_have_the_requested_frequency():
    rng = np.random.default_rng(0)
    for typicality in (0.0, 0.5, 1.0):
        scenes = dataclasses.replace(IMAGES, typicality=typicality)
        objects = [t for _ in range(150) for t in layout_of(scenes, rng).objects]
        fraction = np.mean([t.colour == TYPICAL_LOOKS[t.shape][0] for t in objects])
        # The other objects take any colour, so some of them look typical too.
        assert fraction == pytest.approx(typicality + (1 - typicality) / len(COLOURS), abs=0.08)
        fraction = np.mean([t.texture == TYPICAL_LOOKS[t.shape][1] for t in objects])
        assert fraction == pytest.approx(typicality + (1 - typicality) / len(TEXTURES), abs=0.08)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_is_tight_around_the_pixels_of_its_object(shape):
    side, rng = 80, np.random.default_rng(0)
    alone = Layout("fog", (shape_at(shape, (36.0, 41.0), 48.0),))
    pixels, boxes, visible = render(alone, side, 0, rng)
    assert pixels.shape == (side, side, 3) and visible.tolist() == [True]
    # On fog, the red of the object differs strongly from all pixels around it.
    red = pixels[..., 0].astype(int) - pixels[..., 1] > 50
    ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    painted = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    # The image is averaged from one of twice the size, so an edge may be off by one pixel.
    assert np.abs(boxes[0] - painted).max() <= 1, (boxes[0], painted)


def test_the_box_of_a_covered_object_contains_only_its_visible_part():
    below, above = (
        shape_at("square", (30.0, 40.0), 40.0),
        shape_at("square", (50.0, 40.0), 40.0),
    )
    _, alone, _ = render(Layout("fog", (below,)), 80, 0, np.random.default_rng(0))
    _, boxes, visible = render(Layout("fog", (below, above)), 80, 0, np.random.default_rng(0))
    assert visible.tolist() == [True, True]
    assert boxes[0, 2] == pytest.approx(boxes[1, 0], abs=0.5) and boxes[0, 2] < alone[0, 2] - 5
    np.testing.assert_array_equal(boxes[0, [0, 1, 3]], alone[0, [0, 1, 3]])


def test_an_object_that_is_mostly_covered_has_no_box_and_no_name():
    below, above = (
        shape_at("star", (40.0, 40.0), 20.0),
        shape_at("square", (40.0, 40.0), 60.0),
    )
    layout = Layout("fog", (below, above))
    _, _, visible = render(layout, 80, 0, np.random.default_rng(0))
    assert visible.tolist() == [False, True]
    rng = np.random.default_rng(0)
    captions = [describe(layout, visible, rng) for _ in range(30)]
    assert all("square" in caption and "star" not in caption for caption in captions)


def test_an_object_is_visible_above_the_minimum_visible_fraction():
    # A strip of the lower square stays visible; `fraction` is its part of the square.
    side, size = 200, 80.0
    for fraction in (MIN_VISIBLE - 0.08, MIN_VISIBLE + 0.08):
        width = 0.85 * size
        below = shape_at("square", (100.0, 100.0), size)
        above = shape_at("square", (100.0 + fraction * width, 100.0), size)
        _, _, visible = render(Layout("fog", (below, above)), side, 0, np.random.default_rng(0))
        assert visible.tolist() == [fraction > MIN_VISIBLE, True]


def test_an_object_at_the_edge_is_clipped_with_its_box():
    layout = Layout("fog", (shape_at("circle", (3.0, 40.0), 40.0),))
    _, boxes, _ = render(layout, 80, 0, np.random.default_rng(0))
    assert boxes[0, 0] == 0 and 20 < boxes[0, 2] < 24


def test_an_empty_image_is_described_by_its_background():
    rng = np.random.default_rng(0)
    for background in BACKGROUNDS:
        assert describe(Layout(background, ()), np.zeros(0, bool), rng).endswith(background)


def test_novel_and_base_names_are_disjoint_and_all_are_outlines_and_concepts():
    assert NOVEL_SHAPES and BASE_SHAPES and not NOVEL_SHAPES.keys() & BASE_SHAPES.keys()
    assert set(SHAPES) == NOVEL_SHAPES.keys() | BASE_SHAPES.keys() == OUTLINES.keys()
    assert len(set(CONCEPTS)) == len(CONCEPTS) and set(CONCEPTS) == {*SHAPES, *BACKGROUNDS}
    for colour, texture in TYPICAL_LOOKS.values():
        assert colour in COLOURS and texture in TEXTURES
    # Every colour and texture of a novel category is that of a base category too.
    for part in (0, 1):
        assert {looks[part] for looks in NOVEL_SHAPES.values()} <= {
            looks[part] for looks in BASE_SHAPES.values()
        }


@pytest.mark.parametrize("name", SHAPES)
def test_an_outline_fills_its_square_without_leaving_it(name):
    points = np.concatenate([points for points, _ in OUTLINES[name]])
    assert np.abs(points).max() <= 1.1
    extent = points.max(0) - points.min(0)
    assert extent.min() > 0.7 and extent.max() > 1.6


PARTS = {
    "near": (dataclasses.replace(IMAGES, stream=0, num_objects=(1, 1)), 3),
    "far": (IMAGES, 5),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(directory, PARTS, with_boxes=False)
    return directory


@pytest.fixture
def no_drawing(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("an image was drawn")

    # Other processes draw the images.
    monkeypatch.setattr(dataset.concurrent.futures, "ProcessPoolExecutor", refuse)


def checksums(directory) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_data_set_has_its_parts_in_order(written):
    source = ArrayRecordSource(written)
    assert source.kind == "image_text" and len(source) == 8
    expected = [draw_record(p, i, False) for p, count in PARTS.values() for i in range(count)]
    assert [source[i] for i in range(len(source))] == expected
    description = json.loads(json.dumps(source.description))
    # Earlier versions wrote directories with these keys.
    assert list(description["parts"]["near"]) == [
        "stream", "seed", "side", "num_things", "sizes", "overlap", "typicality", "clutter", "count"
    ]  # fmt: skip


def test_a_complete_data_set_is_kept(written, no_drawing):
    before = checksums(written)
    write_scenes(written, PARTS, with_boxes=False)
    assert checksums(written) == before


def test_an_interrupted_data_set_is_drawn_again(written, tmp_path):
    # A killed process leaves a hidden folder and never the directory.
    debris = tmp_path / ".set.partial-x"
    shutil.copytree(written, debris)
    (debris / "manifest.json").unlink()
    write_scenes(tmp_path / "set", PARTS, with_boxes=False)
    assert checksums(tmp_path / "set") == checksums(written)


@pytest.mark.parametrize(
    "other",
    [
        {"parts": PARTS | {"far": (IMAGES, 6)}, "with_boxes": False},
        {
            "parts": PARTS | {"far": (dataclasses.replace(IMAGES, seed=4), 5)},
            "with_boxes": False,
        },
        {"parts": PARTS, "with_boxes": True},
    ],
    ids=["count", "seed", "boxes"],
)
def test_a_data_set_of_other_scenes_is_refused_and_kept(written, no_drawing, other):
    before = checksums(written)
    with pytest.raises(FileExistsError, match=r"holds another data set \(differing in .*delete it"):
        write_scenes(written, **other)
    assert checksums(written) == before


def test_a_directory_without_a_manifest_is_refused(written, tmp_path, no_drawing):
    shutil.copytree(written, tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match="holds no complete data set: delete it"):
        write_scenes(tmp_path / "set", PARTS, with_boxes=False)
