import io
import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.data.loading.training_set import TrainingSet
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.data.sources.tfds import TfdsBoxesSource, TfdsCaptionsSource

SIZES = [(10, 20), (40, 30), (8, 8), (16, 64)]


def image(number) -> bytes:
    height, width = SIZES[number]
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 40 * number, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """``prepare(features, examples)``: the folder of a data set written by TFDS."""
    import tensorflow_datasets as tfds

    def make(features: dict, examples: list[dict]):
        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            # TFDS looks for a list of downloads here and finds no path for a test file.
            code_path = None

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

        folder = tmp_path_factory.mktemp("tfds")
        builder = Tiny(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        return folder / "tiny" / "1.0.0"

    return make


@pytest.fixture(scope="module")
def features():
    import tensorflow_datasets as tfds

    return {
        "image": tfds.features.Image(encoding_format="png"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        "objects": tfds.features.Sequence(
            {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "is_crowd": np.bool_,
            }
        ),
    }


@pytest.fixture(scope="module")
def coco_like(prepare, features):
    import tensorflow_datasets as tfds

    box = tfds.features.BBox(ymin=0.1, xmin=0.25, ymax=0.5, xmax=1.0)
    objects = [{"bbox": box, "label": name, "is_crowd": name == "cat"} for name in ("dog", "cat")]
    return prepare(
        features,
        [
            {
                "image": io.BytesIO(image(number) if number != 2 else b"broken"),
                "image/filename": f"{number}.png",
                "image/id": 100 + number,
                "captions": [{"id": 1, "text": f"é {number}"}, {"id": 2, "text": "again"}],
                "objects": objects[: number + 1],
            }
            for number in range(4)
        ],
    )


def by_key(source):
    return {source[i].key: source[i] for i in range(len(source))}


def test_captions_are_read_with_the_encoded_image(coco_like):
    source = TfdsCaptionsSource(coco_like, "train")
    records = by_key(source)
    assert set(records) == {f"{i}.png" for i in range(4)}
    assert records["1.png"].image == image(1) and records["1.png"].captions == ("é 1", "again")
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and copy[3] == source[3]
    assert len(TfdsCaptionsSource(coco_like, "train[:50%]")) == 2
    assert "tensorflow" not in sys.modules


def test_relative_boxes_are_converted_to_pixels(coco_like):
    source = TfdsBoxesSource(coco_like, "train")
    assert source.category_names == ("cat", "dog") and source.category_ids == (1, 2)
    index = [i for i in range(4) if i != broken(source)]
    records = {source[i].key: source[i] for i in index}
    assert records["0.png"].boxes.tolist() == [[5, 1, 20, 5]] and records["0.png"].image_id == 100
    assert records["1.png"].boxes.tolist() == [[7.5, 4, 30, 20]] * 2
    assert records["1.png"].size == SIZES[1] and records["3.png"].size == SIZES[3]
    assert records["3.png"].classes.tolist() == [1, 0]
    assert records["3.png"].crowd.tolist() == [False, True]
    for i in index:
        boxes, classes, crowd = source.annotations(i)
        np.testing.assert_array_equal(boxes, source[i].boxes)
        np.testing.assert_array_equal(classes, source[i].classes)
        np.testing.assert_array_equal(crowd, source[i].crowd)
    assert source.sizes() is None


def broken(source) -> int:
    for index in range(len(source)):
        try:
            source.annotations(index)
        except RecordError as error:
            assert error.key == "2.png"
            return index
    raise AssertionError("no record is broken")


def test_the_record_of_a_corrupt_image_is_skipped_when_sampled(coco_like):
    training_set = TrainingSet(TfdsBoxesSource(coco_like, "train"), ("dog",), max_boxes=2)
    assert training_set.report["images that cannot be read"] == 1 and len(training_set) == 4
    skipped = 0
    for index in range(4):
        try:
            assert training_set[index].classes.tolist() == [0]
        except RecordError:
            skipped += 1
    assert skipped == 1


def test_the_captions_feature_may_be_one_text(prepare, features):
    import tensorflow_datasets as tfds

    path = prepare(
        {"image": features["image"], "caption": {"text": tfds.features.Text(), "id": np.int64}},
        [{"image": io.BytesIO(image(0)), "caption": {"text": "words", "id": 1}}],
    )
    assert TfdsCaptionsSource(path, "train")[0].captions == ("words",)
    path = prepare(
        {"image": features["image"], "text": tfds.features.Text()},
        [{"image": io.BytesIO(image(0)), "text": "words"}],
    )
    record = TfdsCaptionsSource(path, "train")[0]
    assert record.key == "#0" and record.captions == ("words",)
    with pytest.raises(ValueError, match=r"'objects' with 'bbox' .* found \['image', 'text'\]"):
        TfdsBoxesSource(path, "train")


def test_other_data_sets_are_refused_with_their_splits_and_features(
    prepare, features, coco_like, tmp_path
):
    with pytest.raises(FileNotFoundError, match=r"such as \['tiny/1\.0\.0'\] in it"):
        TfdsCaptionsSource(coco_like.parents[1], "train")
    with pytest.raises(FileNotFoundError, match=r"such as coco/2017/1\.1\.0"):
        TfdsCaptionsSource(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split 'test' cannot be read .* it has \['train'\]"):
        TfdsCaptionsSource(coco_like, "test")
    path = prepare({"label": np.int64}, [{"label": 1}])
    with pytest.raises(ValueError, match=r"an image as feature 'image', found \['label'\]"):
        TfdsCaptionsSource(path, "train")
    path = prepare({"image": features["image"]}, [{"image": io.BytesIO(image(0))}])
    with pytest.raises(ValueError, match=r"feature of captions .* found \['image'\]"):
        TfdsCaptionsSource(path, "train")


@pytest.fixture
def damaged(coco_like, tmp_path):
    """``damaged(name, change)``: folder of a data set with one file changed."""

    def make(name: str, change):
        folder = shutil.copytree(coco_like, tmp_path / f"data{len(list(tmp_path.iterdir()))}")
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(change(content))
        return folder

    return make


_OWN = b'"tensorflow_datasets.core.features.text_feature.Text"'
_EVIL = b'"data.tiny.evil.X"'


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(_OWN, _EVIL),  # each of them is inside of another
        lambda text: text.replace(b'"pythonClassName": ' + _OWN, b'"python_class_name": ' + _EVIL),
        lambda text: b'{"type": "data.tiny.evil.X", "content": {}}',
        lambda text: json.dumps(
            {
                "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
                "proto_cls": "tensorflow_datasets.FeaturesDict",
                "content": '{"features": {"x": {"pythonClassName": "data.tiny.evil.X"}}}',
            }
        ).encode(),
    ],
    ids=["nested", "snake_case", "old", "text_in_text"],
)
def test_the_classes_that_a_data_set_names_are_not_imported(damaged, change, tmp_path, monkeypatch):
    module = tmp_path / "code" / "data" / "tiny" / "evil.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nX = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path / "code")
    folder = damaged("features.json", change)
    for source in (TfdsCaptionsSource, TfdsBoxesSource):
        with pytest.raises(ValueError, match=r"features\.json: expected a feature of") as error:
            source(folder, "train")
        assert "\n" not in str(error.value)
    assert "data.tiny.evil" not in sys.modules and not (tmp_path / "ran").exists()
    # Else the test proves nothing: TFDS itself imports the module.
    import tensorflow_datasets as tfds

    with pytest.raises(Exception, match="Unrecognized"):
        tfds.features.FeatureConnector.cls_from_name("data.tiny.evil.X")
    assert (tmp_path / "ran").exists()
    for name in [name for name in sys.modules if name.split(".")[0] == "data"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"[" * 10**5,
        lambda text: b"\xff\xfe",
        lambda text: b"",
        lambda text: b"[]",
        lambda text: b"7",
        lambda text: b"{}",
        lambda text: text.replace(b'"', b'"x', 8),
        lambda text: text.replace(b'"-1"', b'"NaN"').replace(b'"1.0.0"', b"[1]"),
        lambda text: text.replace(b'"uint8"', b"{}").replace(b'"splits": [', b'"splits": [[[7]],'),
    ],
    ids=["cut", "deep", "not_utf8", "empty", "list", "number", "object", "keys", "values", "types"],
)
def test_damaged_descriptions_are_refused_in_one_line(damaged, name, change):
    folder = damaged(name, change)
    with pytest.raises(ValueError) as error:
        TfdsCaptionsSource(folder, "train")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_pipe_in_the_folder_is_refused(damaged):
    folder = damaged("features.json", bytes)
    next(folder.glob("*.labels.txt")).unlink()
    os.mkfifo(folder / "objects-label.labels.txt")
    with pytest.raises(FileNotFoundError, match=r"labels\.txt is a .*expected a regular file"):
        TfdsCaptionsSource(folder, "train")


def test_features_that_start_programs_are_not_decoded(prepare, features, monkeypatch):
    """TFDS decodes audio and video with ffmpeg, and images with any reader that is there."""
    import tensorflow_datasets as tfds

    feature = tfds.features.Sequence({"mask": tfds.features.Image(), **features["objects"].feature})
    path = prepare(
        {**features, "objects": feature, "other": features["image"]},
        [
            {
                "image": io.BytesIO(image(0)), "other": io.BytesIO(image(0)), "image/id": 1,
                "image/filename": "a.png", "captions": [{"id": 1, "text": "a"}],
                "objects": [{"mask": io.BytesIO(image(0)), "label": 0, "is_crowd": False,
                             "bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5)}],
            }
        ],
    )  # fmt: skip

    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", refuse)
    assert TfdsCaptionsSource(path, "train")[0].captions == ("a",)
    assert TfdsBoxesSource(path, "train")[0].classes.tolist() == [0]
    path = prepare(
        {"image": features["image"], "caption": features["image"]},
        [{"image": io.BytesIO(image(0)), "caption": io.BytesIO(image(0))}],
    )
    with pytest.raises(ValueError, match="feature 'caption': expected texts or numbers, found"):
        TfdsCaptionsSource(path, "train")
