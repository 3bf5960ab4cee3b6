import io
import pickle
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
