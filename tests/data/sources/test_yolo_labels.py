import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.data.loading.decoding import decode_image_of
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
                                  "0 0.5 0.5 -0.1 0.1", "0 8 6 4 2", "0 1 2 3 4 5 6",
                                  "0 0.5 0.5 0.2 0.2 0.9", "0 0.5 0.5 0.2 0.2 0.9 1",
                                  "0 0.5 0.5 0.2 0.2 0 0.9", "0 0.5 0.5 0.2 0.2 0.9 17",
                                  "0 0.1 0.1 0.9 0.1 0.9 1.2 0.1 0.9", "0 9 0.5 0.2 0.2",
                                  "0 0.1 0.1 0.9 0.1 0.9 -0.2 0.1 0.9"])  # fmt: skip
def test_a_skipped_line_is_counted(root, line):
    label(root, "b", line)
    with pytest.raises(ValueError, match=r"1 of 5 lines .* 1 \(b\.txt 1: "):
        YoloLabelsSource(root, "val")
    assert YoloLabelsSource(root, "val", max_skipped_fraction=0.2).report["boxes"] == 3


KEYPOINTS = "0 0.5 0.5 0.5 0.5 0.4 0.4 0.6 0.7\n1 0.3 0.4 0.5 0.5 0 0 0.2 0.6\n"


def test_a_box_with_keypoints_is_read_with_kpt_shape_and_refused_without(root):
    for name, text in (("a", KEYPOINTS), ("c", "0 0.5 0.5 0.1 0.1 0.5 0.5 0.5 0.5")):
        label(root, name, text)
    with pytest.raises(ValueError, match=r"labels/val: .* 8, .*a\.txt 1: .*kpt_shape: \[2, 2\]"):
        YoloLabelsSource(root, "val")
    names = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(names + "kpt_shape: [2, 2]\n")
    source = YoloLabelsSource(root, "val")
    np.testing.assert_allclose(source[0].boxes[0], [4, 3, 12, 9], rtol=1e-6)
    assert source[0].classes.tolist() == [0, 1] and source.report["boxes"] == 3
    (root / "data.yaml").write_text(names + "kpt_shape: [17, 3]\n")
    with pytest.raises(ValueError, match=r"3 of 3 lines .*without the columns of kpt shape 3"):
        YoloLabelsSource(root, "val")
    (root / "data.yaml").write_text(names + "kpt_shape: 17\n")
    with pytest.raises(ValueError, match=r"data\.yaml: kpt_shape: expected"):
        YoloLabelsSource(root, "val")


def test_polygons_of_one_length_are_told_from_keypoints_by_their_points(root):
    # The first four numbers of the second one are no box in the image.
    label(root, "c", KEYPOINTS.splitlines()[0] + "\n0 0.7 0.7 0.9 0.7 0.9 0.8 0.7 0.8")
    source = YoloLabelsSource(root, "val")
    np.testing.assert_allclose(source[2].boxes[1], [11.2, 8.4, 14.4, 9.6], rtol=1e-6)


def test_a_box_outside_its_image_is_counted(root):
    label(root, "b", "0 1.3 0.5 0.2 0.2")
    with pytest.raises(ValueError, match=r"outside their image 1 \(b\.txt 1: .* in 12 x 16"):
        YoloLabelsSource(root, "val")


def test_an_image_is_read_as_viewers_show_it(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(root / "images" / "val" / "a.png", exif=exif)
    source = YoloLabelsSource(root, "val")
    assert source.sizes()[0].tolist() == [16, 12] == list(source[0].size)
    assert source[0].boxes[0].tolist() == [3, 4, 9, 12]
    assert decode_image_of(source[0], "S").shape == (16, 12, 3)


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


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"{LAUGHS}names: *a29\n", "an alias"),
        (f"{MERGES}names: *a39\n", "an alias"),
        ("names: &a [*a]\n", "an alias"),
        ("names: " + "[" * 10**5, "recursion"),
        ("names: [cat]\nn: 1" + ":1" * 2**18 + "\n", "more than 1000 characters"),
        ("names: [cat]\n" + "#" * 2**20, "more than 1048576 bytes"),
        ("names: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("? [a]\n: b\n", "unhashable"),
        ("names: \x00", "not YAML"),
        ("\xff", "utf-8"),
    ],
    ids=["laughs", "merges", "itself", "deep", "base_60", "long", "code", "key", "nul", "bytes"],
)
def test_yaml_of_much_work_is_refused_in_one_line(root, content, problem):
    """In a process of its own, because the faults that this guards against do not end."""
    (root / "data.yaml").write_bytes(content.encode("latin-1"))
    code = (
        "import sys; from regionclip_jax.data.sources.yolo_labels import YoloLabelsSource\n"
        "try: YoloLabelsSource(sys.argv[1], 'val')\n"
        "except ValueError as error: print(error)"
    )
    if content.startswith(("a0", "names: [cat]\nn")):
        command = [sys.executable, "-c", code, str(root)]
        message = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    else:
        with pytest.raises(ValueError) as error:
            YoloLabelsSource(root, "val")
        message = f"{error.value}\n"
    assert "data.yaml is not YAML: " in message and problem in message
    assert message.count("\n") == 1


def test_a_pipe_or_far_too_long_label_file_is_a_skipped_image(root):
    os.remove(root / "labels" / "val" / "c.txt")
    os.mkfifo(root / "labels" / "val" / "c.txt")
    with open(root / "labels" / "val" / "b.txt", "wb") as file:
        file.truncate(2**24 + 1)
    os.mkfifo(root / "images" / "val" / "d.png")
    source = YoloLabelsSource(root, "val", max_skipped_fraction=0.8)
    assert len(source) == 1 and source.report["images_without_usable_labels"] == 2
    assert source.report["images_unreadable"] == 1
