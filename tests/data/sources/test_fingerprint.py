"""Fingerprints of all sources of files: moved data keep it, and other content has another."""

import base64
import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from regionclip_jax.data.loading.mixing import Mixture
from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.caption_table import CaptionTableSource
from regionclip_jax.data.sources.coco_folder import CocoCaptionsSource, CocoInstancesSource
from regionclip_jax.data.sources.fingerprint import content_facts, fingerprint
from regionclip_jax.data.sources.pascal_voc import PascalVocSource
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource
from regionclip_jax.data.sources.webdataset import WebDatasetSource
from regionclip_jax.data.sources.yolo_labels import YoloLabelsSource

NUM = 40
CAPTIONS = [f"caption {i:02}" for i in range(NUM)]
LEFT = [i % 4 for i in range(NUM)]  # of the one box of each image
# Not one of the 16 records that are read: only the index shows its change.
UNREAD = 1


def coco(root, images, captions, left):
    for folder in ("annotations", "train"):
        (root / folder).mkdir(parents=True)
    entries = [
        {"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in range(len(images))
    ]
    for entry, image in zip(entries, images, strict=True):
        (root / "train" / entry["file_name"]).write_bytes(image)
    texts = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(captions)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [x, 2, 6, 7], "area": 42, "iscrowd": 0}
        for i, x in enumerate(left)
    ]
    for name, annotations in (("captions", texts), ("instances", boxes)):
        content = {"images": entries, "annotations": annotations}
        content["categories"] = [{"id": 1, "name": "dog"}]
        (root / "annotations" / f"{name}_train.json").write_text(json.dumps(content))


def table(root, images, captions, left):
    rows = [f"{i}.png,{text}" for i, text in enumerate(captions)]
    (root / "t.csv").write_text("\n".join(["image,caption", *rows]))
    for i, image in enumerate(images):
        (root / f"{i}.png").write_bytes(image)


def shards(root, images, captions, left):
    with tarfile.open(root / "0.tar", "w") as tar:
        for i, (image, text) in enumerate(zip(images, captions, strict=True)):
            for name, content in ((f"{i}.png", image), (f"{i}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def tsv(root, images, captions, left):
    rows = [f"{i}\t{base64.b64encode(image).decode()}" for i, image in enumerate(images)]
    (root / "images.tsv").write_text("\n".join(rows))
    (root / "text.tsv").write_text("\n".join(f"{i}\t{text}" for i, text in enumerate(captions)))


def prepared(root, images, captions, left):
    pairs = zip(images, captions, strict=True)
    records = [ImageTextRecord(str(i), image, (text,)) for i, (image, text) in enumerate(pairs)]
    write_array_record(records, root / "pairs", 16, {"source": {"path": str(root)}})
    boxes = [
        DetectionRecord(
            str(i), image, np.array([[x, 2, x + 6, 9]], np.float32), np.zeros(1, np.int32),
            np.zeros(1, bool), i,
        )
        for i, (image, x) in enumerate(zip(images, left, strict=True))
    ]  # fmt: skip
    write_array_record(boxes, root / "boxes", 16, {"category_names": ["dog"]})


def yolo(root, images, captions, left):
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    (root / "data.yaml").write_text("names: [dog]")
    for i, (image, x) in enumerate(zip(images, left, strict=True)):
        (root / "images" / "train" / f"{i}.png").write_bytes(image)
        label = f"0 {(x + 3) / 16} 0.5 0.375 0.5"
        (root / "labels" / "train" / f"{i}.txt").write_text(label)


def voc(root, images, captions, left):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, (image, x) in enumerate(zip(images, left, strict=True)):
        (root / "JPEGImages" / f"{i}.jpg").write_bytes(image)
        box = f"<xmin>{x + 1}</xmin><ymin>2</ymin><xmax>{x + 6}</xmax><ymax>9</ymax>"
        text = f"<a><object><name>dog</name><bndbox>{box}</bndbox></object></a>"
        (root / "Annotations" / f"{i}.xml").write_text(text)
    names = "\n".join(str(i) for i in range(len(images)))
    (root / "ImageSets" / "Main" / "train.txt").write_text(names)


# Functions that write and open a layout, and the annotations that its index shows: "captions" or
# "boxes", also of records that are not read. Offsets in shards show captions by their lengths only.
SOURCES = {
    "coco_captions": (coco, lambda root: CocoCaptionsSource(root, "train"), "captions"),
    "coco_boxes": (coco, lambda root: CocoInstancesSource(root, "train"), "boxes"),
    "caption_table": (table, lambda root: CaptionTableSource(root / "t.csv"), "captions"),
    "webdataset": (shards, WebDatasetSource, "lengths"),
    "tsv_pairs": (tsv, TsvPairsSource, "lengths"),
    "array_record": (prepared, lambda root: ArrayRecordSource(root / "pairs"), None),
    "array_record_boxes": (prepared, lambda root: ArrayRecordSource(root / "boxes"), None),
    "yolo_labels": (yolo, lambda root: YoloLabelsSource(root, "train"), "boxes"),
    "pascal_voc": (voc, lambda root: PascalVocSource(root, "train"), "boxes"),
    "mixture": (
        prepared,
        lambda root: Mixture([ArrayRecordSource(root / "pairs")] * 2, [1, 2]),
        None,
    ),
    "training_set": (
        coco,
        lambda root: TrainingSet(CocoInstancesSource(root, "train"), ("dog",), max_boxes=2),
        "boxes",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_moved_data_keep_the_fingerprint_and_other_content_changes_it(name, tmp_path, encode_image):
    write, open_source, index = SOURCES[name]
    images = [encode_image(i) for i in range(NUM)]

    def made(folder, images=images, captions=CAPTIONS, left=LEFT) -> str:
        root = tmp_path / folder
        root.mkdir()
        write(root, images, captions, left)
        return fingerprint(open_source(root))

    def changed(values, new):
        return [new if i == UNREAD else value for i, value in enumerate(values)]

    usual = made("usual")
    assert content_facts(open_source(tmp_path / "usual"))["data"] == usual
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "usual", tmp_path / "elsewhere" / "moved")
    assert fingerprint(open_source(tmp_path / "elsewhere" / "moved")) == usual
    assert made("other_images", [encode_image(100 + i) for i in range(NUM)]) != usual
    if index == "captions":
        assert made("caption", captions=changed(CAPTIONS, "caption 99")) != usual
    elif index == "lengths":
        assert made("caption", captions=changed(CAPTIONS, "a longer caption")) != usual
    elif index == "boxes":
        assert made("box", left=changed(LEFT, 9)) != usual


def test_a_record_that_cannot_be_read_is_part_of_the_fingerprint(tmp_path, encode_image):
    coco(tmp_path, [encode_image(i) for i in range(NUM)], CAPTIONS, LEFT)
    source = CocoCaptionsSource(tmp_path, "train")
    before = fingerprint(source)
    (tmp_path / "train" / "0.png").unlink()
    assert fingerprint(source) != before
