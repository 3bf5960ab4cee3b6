"""Layouts as data sets and tools publish them: read, or refused with the right remedy."""

import json
import tarfile

import numpy as np
import pytest

from regionclip_jax.data.sources.caption_table import CaptionTableSource
from regionclip_jax.data.sources.coco_folder import CocoCaptionsSource, CocoInstancesSource
from regionclip_jax.data.sources.lvis_folder import LvisInstancesSource
from regionclip_jax.data.sources.pascal_voc import PascalVocSource
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource
from regionclip_jax.data.sources.webdataset import WebDatasetSource
from regionclip_jax.data.sources.yolo_labels import YoloLabelsSource

BOM = "\ufeff"
LABEL = "1 0.5 0.5 0.5 0.5\n"
VOC = (
    "<annotation><filename>{}</filename><object><name>dog</name><bndbox><xmin>5</xmin>"
    "<ymin>4</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
# The box of LABEL, VOC and coco() in an image of 12 x 16.
BOX = [[4, 3, 12, 9]]
NAMES = "names: [cat, dog]\n"
ROBOFLOW = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\n" + NAMES
COCO128 = "path: ../datasets/coco128\ntrain: images/train2017\nval: images/train2017\n" + NAMES


@pytest.fixture
def write(tmp_path, encode_image):
    """``write({path: text})``: files in the root; None stands for an image."""

    def make(files: dict):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_image(1) if text is None else text.encode())
        return tmp_path

    return make


def coco(file_name="a.jpg", **size) -> str:
    """Return an annotation file of one image, with a caption and with the box."""
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 3, 8, 6], "area": 48}
    content = {
        "images": [{"id": 1, "file_name": file_name, **size}],
        "annotations": [{**box, "iscrowd": 0, "caption": "a dog"}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    return json.dumps(content)


def lvis(**size) -> str:
    content = json.loads(coco(**size))
    content["images"][0] |= {
        "coco_url": "http://images.cocodataset.org/val2017/a.jpg",
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
    }
    content["categories"][0]["frequency"] = "f"
    return json.dumps(content)


READ = {
    "yolo of roboflow": (
        YoloLabelsSource,
        "train",
        {"data.yaml": ROBOFLOW, "train/images/a.jpg": None, "train/labels/a.txt": LABEL},
    ),
    "yolo of roboflow, by its key": (
        YoloLabelsSource,
        "val",
        {"data.yaml": ROBOFLOW, "valid/images/a.jpg": None, "valid/labels/a.txt": LABEL},
    ),
    "yolo of coco128": (
        YoloLabelsSource,
        "train2017",
        {
            "coco128.yaml": COCO128,
            "images/train2017/a.jpg": None,
            "labels/train2017/a.txt": LABEL,
        },
    ),
    "yolo of coco128, by its key": (
        YoloLabelsSource,
        "train",
        {
            "coco128.yaml": COCO128,
            "images/train2017/a.jpg": None,
            "labels/train2017/a.txt": LABEL,
        },
    ),
    "yolo with byte order marks": (
        YoloLabelsSource,
        "",
        {"data.yaml": BOM + NAMES, "images/a.jpg": None, "labels/a.txt": BOM + LABEL},
    ),
    "yolo with names in lines": (
        YoloLabelsSource,
        "",
        {"classes.txt": BOM + "cat\ndog\n", "images/a.jpg": None, "labels/a.txt": LABEL},
    ),
    "voc without lists": (
        PascalVocSource,
        "",
        {"JPEGImages/a.jpg": None, "Annotations/a.xml": VOC.format("a.jpg")},
    ),
    "voc of labelimg": (
        PascalVocSource,
        "",
        {"images/a.png": None, "Annotations/a.xml": VOC.format("a.png")},
    ),
    "voc of roboflow": (
        PascalVocSource,
        "valid",
        {"valid/a.jpg": None, "valid/a.xml": VOC.format("a.jpg")},
    ),
    "voc with byte order marks": (
        PascalVocSource,
        "val",
        {
            "ImageSets/Main/val.txt": BOM + "a\n",
            "JPEGImages/a.jpg": None,
            "Annotations/a.xml": BOM + VOC.format("a.jpg"),
        },
    ),
    "coco without sizes": (
        CocoInstancesSource,
        "val",
        {"annotations/instances_val.json": coco(), "val/a.jpg": None},
    ),
    "coco with a byte order mark": (
        CocoInstancesSource,
        "val",
        {"annotations/instances_val.json": BOM + coco(height=12, width=16), "val/a.jpg": None},
    ),
    "lvis without sizes, with a byte order mark": (
        LvisInstancesSource,
        "val",
        {"annotations/lvis_v1_val.json": BOM + lvis(), "val2017/a.jpg": None},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_boxes_of_published_layouts_are_read(write, name):
    make, split, files = READ[name]
    source = make(write(files), split)
    assert len(source) == 1 and source[0].boxes.tolist() == BOX
    np.testing.assert_array_equal(source.sizes(), [[12, 16]])
    assert source.category_names[source[0].classes[0]] == "dog"


@pytest.mark.parametrize("folder", ["pictures", "pictures/train2017"])
def test_the_images_of_an_annotation_file_are_in_the_folder_of_the_split_if_there_is_one(
    write, folder
):
    """The split of a recipe, such as train2017, needs no folder beside a file of one's own."""
    root = write({"boxes.json": coco(height=12, width=16), f"{folder}/a.jpg": None})
    file = root / "boxes.json"
    source = CocoInstancesSource(root / "pictures", "train2017", annotations=file)
    assert source[0].boxes.tolist() == BOX


@pytest.mark.parametrize(
    ("files", "name"),
    [
        # Flickr8k, with commas that are quoted or not.
        (
            {
                "captions.txt": 'image,caption\na.jpg,"one , two"\na.jpg,"Dogs , ""cats"", birds\n'
                "a.jpg,red, green , blue\n",
                "Images/a.jpg": None,
            },
            "captions.txt",
        ),
        (
            {
                "t.csv": BOM + "a.jpg,one , two\na.jpg,Dogs\na.jpg,red, green , blue\n",
                "a.jpg": None,
            },
            "t.csv",
        ),
        ({"t.txt": BOM + "file\ttext\na.jpg\tone , two\na.jpg\tred, green , blue\n",
          "images/a.jpg": None}, "t.txt"),
    ],
)  # fmt: skip
def test_commas_of_captions_need_no_quotation_marks(write, files, name):
    source = CaptionTableSource(write(files) / name, max_skipped_fraction=0.4)
    captions = source[0].captions
    assert captions[0] == "one , two" and captions[-1] == "red, green , blue"
    assert len(source) == 1 and source[0].image


def test_a_folder_instead_of_its_table_is_refused_with_the_tables_in_it(write):
    root = write({"captions.txt": "image,caption\n", "readme.md": ""})
    with pytest.raises(FileNotFoundError, match=r"has \['captions\.txt'\]: add one to path"):
        CaptionTableSource(root)
    with pytest.raises(FileNotFoundError, match="expected a table .*; correct path"):
        CaptionTableSource(root / "none")


def test_a_row_of_too_many_cells_whose_caption_is_not_last_is_skipped(write):
    text = "caption,image\na red, green bird,a.jpg\na cat,a.jpg\n"
    path = write({"t.csv": text, "a.jpg": None}) / "t.csv"
    with pytest.raises(ValueError, match=r"1 of 2 rows .* without file or caption 1 \(2\)"):
        CaptionTableSource(path)
    source = CaptionTableSource(path, max_skipped_fraction=0.5)
    assert source[0].captions == ("a cat",)


def test_a_byte_order_mark_is_no_part_of_a_caption(write):
    root = write({"0/a.txt": BOM + "a dog", "0/a.jpg": None, "1/a.jpg": None,
                  "1/a.json": BOM + json.dumps({"caption": "a dog"}),
                  "images0.tsv": BOM + "k\taGk=\n", "text0.tsv": BOM + "k\ta dog\n",
                  "images0.lineidx": BOM + "0\n",
                  "annotations/captions_val.json": BOM + coco(), "val/a.jpg": None})  # fmt: skip
    for shard in ("0", "1"):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for path in (root / shard).iterdir():
                tar.add(path, path.name)
        assert WebDatasetSource(root / f"{shard}.tar")[0].captions == ("a dog",)
    record = TsvPairsSource(root)[0]
    assert (record.key, record.image, record.captions) == ("k", b"hi", ("a dog",))
    assert CocoCaptionsSource(root, "val")[0].captions == ("a dog",)


COCO = {
    "coco/annotations/instances_train2017.json": coco(height=12, width=16),
    "coco/annotations/captions_train2017.json": coco(),
    "coco/train2017/a.jpg": None,
}
YOLO = {"mine/data.yaml": NAMES, "mine/images/train/a.jpg": None, "mine/labels/train/a.txt": LABEL}
LISTED = {
    "voc/ImageSets/Main/trainval.txt": "a\n",
    "voc/Annotations/a.xml": VOC.format("a.jpg"),
    "voc/JPEGImages/a.jpg": None,
}
REFUSED = [
    (COCO, CocoInstancesSource, "coco", "train", r"it has \['train2017'\]: set split"),
    (COCO, CocoInstancesSource, "coco", "", r"it has \['train2017'\]: set split"),
    (COCO, CocoCaptionsSource, "coco", "val2017", r"it has \['train2017'\]: set split"),
    (COCO, CocoInstancesSource, "", "train2017", r"/coco has \['train2017'\]: set path to it"),
    (COCO, CocoCaptionsSource, "coco/annotations", "", r"/coco has \['train2017'\]: set path"),
    (COCO, CocoInstancesSource, "coco/train2017", "x", r"/coco has \['train2017'\]: set path"),
    (COCO, LvisInstancesSource, "coco", "train", r"holds \['annotations', 'train2017'\]: correct"),
    (
        {"export/train/_annotations.coco.json": coco(), "export/train/a.jpg": None},
        CocoInstancesSource,
        "export",
        "train",
        r"to read .*export/train/_annotations\.coco\.json, set annotations to it, and path to",
    ),
    (
        {**COCO, "coco/train2017/a.jpg": "", "coco/annotations/captions_val.json": coco(),
         "coco/images/val/a.jpg": None},
        CocoCaptionsSource,
        "coco",
        "val",
        r"coco/val does not exist: .* move .*coco/images/val there",
    ),
    (YOLO, YoloLabelsSource, "mine", "val", r"it has \['train'\]: set split"),
    (YOLO, YoloLabelsSource, "", "train", r"mine has \['train'\]: set path to it"),
    (YOLO, YoloLabelsSource, "mine/images", "train", r"mine has \['train'\]: set path to it"),
    (
        {"coco128/images/train2017/a.jpg": None, "coco128/labels/train2017/a.txt": LABEL},
        YoloLabelsSource,
        "coco128",
        "train2017",
        r"neither data\.yaml nor classes\.txt: .* without its coco128\.yaml: copy it",
    ),
    (
        {"a/images/train/a.jpg": None},
        YoloLabelsSource,
        "a",
        "train",
        r"a/labels/train does not exist: expected the labels of the images in .*images/train",
    ),
    (LISTED, PascalVocSource, "voc", "", r"it has \['trainval'\]: set split"),
    (LISTED, PascalVocSource, "", "trainval", r"voc has \['trainval'\]: set path to it"),
    (
        {"voc/JPEGImages/a.jpg": None, "voc/Annotations/a.xml": VOC},
        PascalVocSource,
        "voc",
        "trainval",
        r"it has \[''\]: set split",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "make", "root", "split", "message"), REFUSED)
def test_a_wrong_root_or_split_is_refused_with_the_right_one(
    write, files, make, root, split, message
):
    with pytest.raises(FileNotFoundError, match=message):
        make(write(files) / root, split)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("pictures/a.jpg", "pictures/a.jpg", r"root has pictures/a\.jpg: set path and split to"),
        ("a.jpg", "pictures/more/a.jpg", r"pictures/more has a\.jpg: set path and split"),
        ("C:\\work\\a.jpg", "pictures/a.jpg", "pictures has a.jpg, without the folder"),
        ("a.jpg", "pictures/b.jpg", r"download and unpack the images into .*pictures"),
    ],
)
def test_an_annotation_file_beside_another_folder_of_images_is_refused_with_it(
    write, name, place, message
):
    root = write({f"root/{place}": None, "root/boxes.json": coco(name)}) / "root"
    with pytest.raises(ValueError, match=message):
        CocoInstancesSource(root / "pictures", "train2017", annotations=root / "boxes.json")
    with pytest.raises(FileNotFoundError, match=r"lost\.json does not exist: .* correct its path"):
        CocoInstancesSource(root / "pictures", "", annotations=root / "lost.json")
