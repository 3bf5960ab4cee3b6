"""Detections of the public API: drawn, and in the formats of other libraries."""

import json

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.extras import MissingExtra
from regionclip_jax.model import Detected
from regionclip_jax.reporting.drawing import CLASS_COLOURS, class_colour

NAMES = ("cat", "remote control", "<b>dog</b>")
# The second detection is another name of the first box.
FOUND = Detected(
    np.array([[4, 5, 40, 50], [4, 5, 40, 50], [50.25, 10, 85, 30]], np.float32),
    np.array([0.9, 0.4, 0.25], np.float32),
    np.array([2, 0, 1], np.int32),
    ("<b>dog</b>", "cat", "remote control"),
    NAMES,
    (60, 90),
)
NONE = Detected(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), (), NAMES, (9, 9)
)


def has(image, colour) -> bool:
    return bool((np.asarray(image) == np.array(colour, np.uint8)).all(-1).any())


def test_every_class_has_its_own_colour_under_white_letters():
    colours = [class_colour(row) for row in range(1203)]
    assert len(set(colours)) == 1203 and tuple(colours[:10]) == CLASS_COLOURS
    linear = np.array(colours) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    # The first ten are older; brown and orange have the contrast 4.4 of large letters.
    assert contrast[10:].min() >= 4.5 and contrast.min() > 3


@pytest.mark.parametrize("width", [30, 320, 1000, 2400])
def test_annotated_images_of_any_size_have_the_best_name_of_each_box_and_a_legend(width):
    height = width * 2 // 3
    scale = width / 90
    found = Detected(
        FOUND.boxes * scale, FOUND.scores, FOUND.classes, FOUND.names, NAMES, (height, width)
    )
    image = np.full((height, width, 3), 255, np.uint8)
    drawn = found.draw(image)
    factor = max(1, -(-320 // width))
    assert drawn.width == factor * width and drawn.height > factor * height
    strip = np.asarray(drawn)[factor * height :]
    assert has(drawn, class_colour(2)) and has(strip, class_colour(2))
    assert has(strip, class_colour(1)) and not has(drawn, class_colour(0))
    few = found.draw(image, score=0.5, legend=False)
    assert few.size == (factor * width, factor * height)
    assert has(few, class_colour(2)) and not has(few, class_colour(1))
    # Squares of the legend grow with the image, as its letters do.
    square = (strip == np.array(class_colour(2), np.uint8)).all(-1).any(1).sum()
    assert square >= max(11, min(drawn.width * 2 // 3 / 60, 110))


def test_an_image_of_another_size_is_not_drawn_on():
    with pytest.raises(ValueError, match="image: 90 x 60 .*expected 60 x 90"):
        FOUND.draw(np.zeros((90, 60, 3), np.uint8))


def test_detections_become_a_coco_dataset():
    dataset = json.loads(json.dumps(FOUND.to_coco("a/x.jpg")))
    assert dataset["images"] == [{"id": 1, "file_name": "a/x.jpg", "height": 60, "width": 90}]
    assert [c["name"] for c in dataset["categories"]] == list(NAMES)
    last = dataset["annotations"][2]
    assert last["bbox"] == [50.25, 10.0, 34.75, 20.0] and last["area"] == 695.0
    assert (last["id"], last["image_id"], last["category_id"], last["score"]) == (3, 1, 2, 0.25)
    assert NONE.to_coco()["annotations"] == []
    with pytest.raises(ValueError, match="size: found None"):
        Detected(FOUND.boxes, FOUND.scores, FOUND.classes, FOUND.names).to_coco()


def test_detections_become_those_of_supervision_and_so_does_the_dataset(tmp_path):
    supervision = pytest.importorskip("supervision")
    detections = FOUND.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 3
    np.testing.assert_array_equal(detections.xyxy, FOUND.boxes)
    np.testing.assert_array_equal(detections.confidence, FOUND.scores)
    assert detections.class_id.tolist() == [2, 0, 1]
    assert detections.data["class_name"].tolist() == list(FOUND.names)
    assert len(NONE.to_supervision()) == 0
    (tmp_path / "a").mkdir()
    Image.new("RGB", (90, 60)).save(tmp_path / "a" / "x.jpg")
    (tmp_path / "detections.json").write_text(json.dumps(FOUND.to_coco("a/x.jpg")))
    dataset = supervision.DetectionDataset.from_coco(
        str(tmp_path), str(tmp_path / "detections.json")
    )
    assert dataset.classes == list(NAMES)
    ((_, image, read),) = list(dataset)
    assert image.shape == (60, 90, 3)
    np.testing.assert_allclose(read.xyxy, FOUND.boxes, atol=0.01)
    assert read.class_id.tolist() == [2, 0, 1]


def test_without_supervision_the_error_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(MissingExtra, match=r'pip install -e ".\[supervision\]"'):
        FOUND.to_supervision()


def test_a_notebook_shows_a_table_without_markup_of_names():
    table = FOUND._repr_html_()
    assert "3 detections" in table and "<td>90%</td>" in table and "50.2" in table
    assert "&lt;b&gt;dog&lt;/b&gt;" in table and "<b>dog" not in table
    assert "0 detections" in NONE._repr_html_()
    many = FOUND.rows([0] * 70)._repr_html_()
    assert "70 detections; 20 more" in many and many.count("<tr>") == 51
