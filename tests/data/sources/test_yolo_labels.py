import pickle

import numpy as np
import pytest

from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.sources.yolo_labels import YoloLabelsSource


@pytest.fixture
def root(tmp_path, encode_image):
    for name in ("images/val", "labels/val"):
        (tmp_path / name).mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        (tmp_path / "images" / "val" / name).write_bytes(encode_image(number, 12, 16))
    (tmp_path / "data.yaml").write_text("names:\n  0: dog\n  1: cat\n")
    label(tmp_path, "a", "1 0.5 0.5 0.5 0.5\n\n0 0.0 0.5 0.5 1.0\n")
    label(tmp_path, "c", "0 0.25 0.5 0.75 0.5 0.5 1.0\n0 0.5 0.5 0 0.1\n")
    return tmp_path


def label(root, name, text):
    (root / "labels" / "val" / f"{name}.txt").write_text(text)


def test_relative_centre_boxes_are_converted_to_pixels(root):
    source = YoloLabelsSource(root, "val")
    assert source.category_names == ("dog", "cat") and source.category_ids == (1, 2)
    assert source[0].boxes.tolist() == [[4, 3, 12, 9], [0, 0, 4, 12]]
    assert source[0].classes.tolist() == [1, 0]
    assert len(source[1].boxes) == 0 and source[2].boxes.tolist() == [[4, 6, 12, 12]]
    assert source.report["images_without_label_file"] == 1
    assert source.report["boxes_dropped_empty"] == 1
    np.testing.assert_array_equal(source.sizes(), [[12, 16]] * 3)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and copy[0].image == source[0].image
    assert len(TrainingSet(source, ("cat",), max_boxes=2)) == 1


@pytest.mark.parametrize("line", ["2 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1",
                                  "dog 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 nan 0.5 0.1 0.1", "0",
                                  "0 0.5 0.5 -0.1 0.1", "0 8 6 4 2", "0 1 2 3 4 5 6"])  # fmt: skip
def test_a_skipped_line_is_counted(root, line):
    label(root, "b", line)
    with pytest.raises(ValueError, match=r"1 of 5 lines .* malformed 1 \(b\.txt 1: "):
        YoloLabelsSource(root, "val")
    assert YoloLabelsSource(root, "val", max_skipped_fraction=0.2).report["boxes"] == 3


def test_names_may_be_a_list_or_a_file_of_lines(root):
    (root / "data.yaml").write_text("names: [bird, fish]")
    assert YoloLabelsSource(root, "val").category_names == ("bird", "fish")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("sun\nmoon\n\n")
    assert YoloLabelsSource(root, "val").category_names == ("sun", "moon")
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither data\.yaml nor classes\.txt"):
        YoloLabelsSource(root, "val")


@pytest.mark.parametrize(
    "text", ["names: {1: dog, 2: cat}", "names: [a, a]", "names: 7", "[]", "names: [", "names: []"]
)
def test_names_that_do_not_match_the_classes_are_refused(root, text):
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"data\.yaml"):
        YoloLabelsSource(root, "val")


def test_missing_or_invalid_files_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"no split 'train': .* has \['val'\]"):
        YoloLabelsSource(root, "train")
    (root / "images" / "val" / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 3 images .* unreadable 1 \(b\.png\)"):
        YoloLabelsSource(root, "val")
    assert len(YoloLabelsSource(root, "val", max_skipped_fraction=0.4)) == 2
    for name in ("a", "c"):
        (root / "labels" / "val" / f"{name}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no NAME\.txt for any image"):
        YoloLabelsSource(root, "val")
