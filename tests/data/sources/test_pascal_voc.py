import os
import pickle

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.sources.pascal_voc import PascalVocSource


def annotated(name, corners, more=""):
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


@pytest.fixture
def root(tmp_path, encode_image):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for name, width in (("one.jpg", 16), ("two.jpg", 8), ("three.png", 4)):
        (tmp_path / "JPEGImages" / name).write_bytes(encode_image(width, 12, width))
    annotate(tmp_path, "one", annotated("dog", (1, 2, 16, 12)) + annotated("cat", (3, 3, 99, 5)))
    annotate(tmp_path, "two", annotated("dog", (2, 2, 4, 4), "<difficult>1</difficult>"))
    annotate(tmp_path, "three", "<filename>three.png</filename>")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("two  1\none -1\n\nthree\n")
    return tmp_path


def annotate(root, name, content, head=""):
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(f"{head}<annotation>{content}</annotation>")


def test_pixel_indices_of_boxes_start_at_one_and_include_the_last(root):
    source = PascalVocSource(root, "val")
    assert [source[i].key for i in range(3)] == ["two.jpg", "one.jpg", "three.png"]
    assert source.category_names == ("cat", "dog") and source.category_ids == (1, 2)
    assert source[1].boxes.tolist() == [[0, 1, 16, 12], [2, 2, 16, 5]]
    assert source[1].classes.tolist() == [1, 0] and not source[1].crowd.any()
    assert source.report["boxes_difficult"] == 1 and source.report["images_without_box"] == 1
    np.testing.assert_array_equal(source.sizes(), [[12, 8], [12, 16], [12, 4]])
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and copy[1].image == source[1].image
    assert len(TrainingSet(source, ("dog",), max_boxes=2)) == 2


@pytest.mark.parametrize(
    ("content", "head"),
    [
        ("<object>", ""),
        (annotated("&lol;", (1, 1, 2, 2)), '<!DOCTYPE a [<!ENTITY lol "lol">]>'),
        ("", '<?xml version="1.0" encoding="nonsense"?>'),
        ("\0", ""),
    ],
)
def test_a_file_without_plain_xml_is_counted(root, content, head):
    annotate(root, "two", content, head)
    with pytest.raises(ValueError, match=r"1 of 3 images .* usable annotation 1 \(two\)"):
        PascalVocSource(root, "val")
    assert PascalVocSource(root, "val", max_skipped_fraction=0.4)[0].key == "one.jpg"


@pytest.mark.parametrize(
    "content",
    [
        annotated("", (1, 2, 3, 4)),
        annotated("dog", ("x", 2, 3, 4)),
        annotated("dog", ("nan", 2, 3, 4)),
        annotated("dog", (9, 2, 3, 4)),
        "<object><name>dog</name></object>",
    ],
)
def test_a_skipped_object_is_counted(root, content):
    annotate(root, "two", content)
    with pytest.raises(ValueError, match=r"1 of 3 objects .* usable box 1 \(two: 0\)"):
        PascalVocSource(root, "val")
    source = PascalVocSource(root, "val", max_skipped_fraction=0.4)
    assert source.report["boxes"] == 2 and len(source) == 3


def sized(height, width):
    return f"<size><width>{width}</width><height>{height}</height></size>"


def test_the_size_in_the_file_decides_on_the_orientation_and_must_fit(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(root / "JPEGImages" / "one.jpg", exif=exif)
    objects = annotated("dog", (1, 2, 11, 12))
    for size in (None, (0, 0), (16, 12), (12, 16)):
        expected = (12, 16) if size == (12, 16) else (16, 12)
        annotate(root, "one", ("" if size is None else sized(*size)) + objects)
        source = PascalVocSource(root, "val")
        assert source[1].size == expected == tuple(source.sizes()[1])
        assert decode_image_of(source[1], "S").shape[:2] == expected
    annotate(root, "one", sized(24, 32) + objects)
    with pytest.raises(ValueError, match=r"of another size 1 \(one\.jpg: the image is 16 x 12"):
        PascalVocSource(root, "val")
    source = PascalVocSource(root, "val", max_skipped_fraction=0.4)
    assert len(source) == 2 and source.report["images_of_another_size"] == 1


def test_boxes_in_fractions_are_refused(root):
    for name in ("one", "two"):
        annotate(root, name, annotated("dog", (0.2, 0.2, 0.9, 0.8)))
    with pytest.raises(ValueError, match=r"Annotations: 'bndbox': all coordinates of the 2 boxes"):
        PascalVocSource(root, "val", max_skipped_fraction=0.9)


def test_missing_files_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"no split 'train': .* has \['val'\]"):
        PascalVocSource(root, "train")
    (root / "JPEGImages" / "one.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"missing or unreadable 1 \(one\.jpg\)"):
        PascalVocSource(root, "val")
    (root / "ImageSets" / "Main" / "empty.txt").write_text("three\n")
    with pytest.raises(ValueError, match="no image of the list has an object"):
        PascalVocSource(root, "empty")


def test_xml_of_much_work_is_a_skipped_image(root):
    laughs = '<!DOCTYPE a [<!ENTITY a "lol">' + "".join(
        f"<!ENTITY a{i} '{f'&a{i - 1 if i else str()};' * 9}'>" for i in range(30)
    )
    (root / "Annotations" / "one.xml").write_text(f"{laughs}]><annotation>&a29;</annotation>")
    os.remove(root / "Annotations" / "two.xml")
    os.mkfifo(root / "Annotations" / "two.xml")
    image = (root / "JPEGImages" / "one.jpg").read_bytes()
    for name in ("deep", "long", "file"):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(image)
    nested = "<object>" * 10**4 + annotated("dog", (1, 2, 3, 4)) + "</object>" * 10**4
    annotate(root, "deep", nested)
    with open(root / "Annotations" / "long.xml", "wb") as file:
        file.truncate(2**24 + 1)
    entity = '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    annotate(root, "file", annotated("&f;", (1, 2, 3, 4)), head=entity)
    names = "two\none\nthree\ndeep\nlong\nfile\n"
    (root / "ImageSets" / "Main" / "val.txt").write_text(names)
    with pytest.raises(ValueError, match="objects without name or usable box 10000"):
        PascalVocSource(root, "val", max_skipped_fraction=0.9)
    source = PascalVocSource(root, "val", max_skipped_fraction=1.0)
    assert source.report["images_without_usable_annotation"] == 4 and len(source) == 2
    assert source.category_names == ("dog",)


def test_a_list_of_any_length_is_refused_before_it_is_read(root):
    path = next((root / "ImageSets" / "Main").glob("*.txt"))
    os.truncate(path, 2**40)  # no block of the disk
    with pytest.raises(ValueError, match=f"{path.name} has more than 67108864 bytes"):
        PascalVocSource(root, path.stem)
