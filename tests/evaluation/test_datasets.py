"""Classes of an evaluation, groups of classes, and the metric of a data set."""

from types import SimpleNamespace

import numpy as np
import pytest

from regionclip_jax.data.scenes.vocabulary import BASE_SHAPES, NOVEL_SHAPES, SHAPES
from regionclip_jax.data.sources.annotation_files import as_annotation_file
from regionclip_jax.evaluation.datasets import class_groups, open_dataset
from regionclip_jax.settings import ConfigError
from regionclip_jax.structures import DetectionBatch

SOURCE = SimpleNamespace(category_names=("cat", "hot_dog", "sofa"), category_ids=(3, 7, 9))


def groups(split, trained=None, source=SOURCE):
    """Return the class names of each group."""
    dataset = open_dataset(source, str(split), trained)
    assert dataset.ids == SOURCE.category_ids
    return {
        group: {dataset.source_names[i] for i in members}
        for group, members in dataset.groups.items()
    }


def test_base_classes_come_from_a_list_and_the_others_are_novel(tmp_path):
    (tmp_path / "base.txt").write_text("sofa\n\ncat\n")
    class_names = groups(tmp_path / "base.txt")
    assert class_names == {
        "novel": {"hot_dog"}, "base": {"cat", "sofa"}, "all": {"cat", "hot_dog", "sofa"}
    }  # fmt: skip


@pytest.mark.parametrize("spelling", ["hot_dog", "hot dog"])
def test_names_are_compared_in_words(tmp_path, spelling):
    (tmp_path / "base.txt").write_text(f"{spelling}\n")
    assert groups(tmp_path / "base.txt")["base"] == {"hot_dog"}


def test_trained_classes_are_the_base_classes():
    # Detector heads store names with spaces.
    class_names = groups("trained", ["hot dog", "cat", "zebra"])
    assert class_names["base"] == {"hot_dog", "cat"} and class_names["novel"] == {"sofa"}
    assert "novel" not in groups("trained", ["cat", "hot dog", "sofa"])
    assert groups("none") == {"all": {"cat", "hot_dog", "sofa"}}


def test_the_split_of_the_synthetic_scenes_equals_that_of_their_vocabulary():
    dataset = open_dataset(SimpleNamespace(category_names=SHAPES), "scenes")
    assert dataset.names == SHAPES and dataset.ids == tuple(range(1, len(SHAPES) + 1))
    class_names = {name: {SHAPES[k] for k in members} for name, members in dataset.groups.items()}
    assert class_names == {"novel": set(NOVEL_SHAPES), "base": set(BASE_SHAPES), "all": set(SHAPES)}
    assert list(class_names)[-1] == "all"


def test_lvis_groups_are_the_frequencies_of_the_file_in_the_order_of_the_classes():
    source = SimpleNamespace(
        category_names=("bow_(weapon)", "cat", "dog", "owl"), frequencies=("r", "f", "c", "f")
    )
    assert class_groups(source, "lvis") == {"rare": (0,), "common": (2,), "frequent": (1, 3)}
    assert open_dataset(source, "lvis").names == ("bow weapon", "cat", "dog", "owl")


def test_only_the_selected_groups_must_be_in_the_data():
    source = SimpleNamespace(category_names=BASE_SHAPES)
    assert class_groups(source, "scenes", chosen=("base",)) == {
        "base": tuple(range(len(BASE_SHAPES)))
    }
    with pytest.raises(ValueError, match="'scenes' names"):
        class_groups(source, "scenes")


def test_invalid_splits_are_refused(tmp_path):
    (tmp_path / "base.txt").write_text("cat\nsettee\n")
    with pytest.raises(ConfigError, match=r"evaluation\.class_split: .* names \['settee'\]"):
        groups(tmp_path / "base.txt")
    with pytest.raises(ConfigError, match="'trained' needs a detector or localizer"):
        groups("trained")
    with pytest.raises(ConfigError, match="neither a file nor one of .*'trained'"):
        groups("coco_novel")
    with pytest.raises(ConfigError, match="class_split: 'coco_48_17' names .*does not have"):
        groups("coco_48_17")
    with pytest.raises(ConfigError, match="needs an LVIS annotation file"):
        groups("lvis")


def test_classes_that_are_equal_in_words_are_refused():
    source = SimpleNamespace(category_names=("bow_(weapon)", "cat", "bow weapon"))
    with pytest.raises(ConfigError, match=r"evaluation\.path: 2 classes of .* 'bow weapon'"):
        open_dataset(source, "none")


def test_the_lvis_metric_needs_all_classes():
    source = SimpleNamespace(category_names=(*SHAPES, "unicorn"), metric="lvis")
    with pytest.raises(ConfigError, match=rf"has {len(SHAPES)} of the {len(SHAPES) + 1} classes"):
        open_dataset(source, "scenes")


class Annotated:
    """Source with the class of one box and of one crowd box for each record."""

    category_names = ("objects", "cat", "hot_dog", "sofa")
    records = ((1, 3), (3, 2))

    def __len__(self):
        return len(self.records)

    def annotations(self, index):
        return np.zeros((2, 4)), np.array(self.records[index]), np.array([False, True])


def test_classes_without_boxes_are_left_out_if_wanted(tmp_path):
    (tmp_path / "base.txt").write_text("sofa\nhot dog\n")
    whole = open_dataset(Annotated(), str(tmp_path / "base.txt"))
    assert whole.names == ("objects", "cat", "hot dog", "sofa")
    part = open_dataset(Annotated(), str(tmp_path / "base.txt"), classes="with_boxes")
    assert part.names == ("cat", "sofa") and part.ids == (2, 4) and not part.is_part
    assert part.groups == {"novel": {0}, "base": {1}, "all": {0, 1}}
    (tmp_path / "base.txt").write_text("objects\nhot dog\n")
    part = open_dataset(Annotated(), str(tmp_path / "base.txt"), classes="with_boxes")
    assert part.groups == {"novel": {0, 1}, "all": {0, 1}}  # an empty group has no number


def test_a_split_keeps_the_boxes_of_its_classes():
    source = SimpleNamespace(category_names=("unicorn", *reversed(SHAPES)))
    dataset = open_dataset(source, "scenes")
    batch = DetectionBatch(
        images=np.zeros((1, 8, 8, 3), np.uint8),
        sizes=np.array([[8, 8]], np.int32),
        boxes=np.zeros((1, 4, 4), np.float32),
        classes=np.array([[0, 1, len(SHAPES), 0]], np.int32),
        box_mask=np.array([[True, True, True, False]]),
        image_ids=np.array([5], np.int32),
        scales=np.ones((1, 2), np.float32),
        mask=np.array([True]),
    )
    kept = dataset.keep_classes(batch)
    assert kept.box_mask.tolist() == [[False, True, True, False]]
    names = [dataset.names[i] for i in kept.classes[0][kept.box_mask[0]]]
    assert names == [SHAPES[-1], SHAPES[0]]


def test_an_invalid_annotation_file_is_refused_with_its_key():
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 4, "image_id": 1, "category_id": 77, "bbox": [0, 0, 2, 3]}],
    }
    file = as_annotation_file("instances.json", content)
    source = SimpleNamespace(category_names=("cat",), annotation_file=file)
    dataset = open_dataset(source, "none")
    with pytest.raises(ConfigError, match=r"evaluation\.path: instances\.json: annotation 4: 'cat"):
        dataset.ground_truth()
    assert open_dataset(SOURCE, "none").ground_truth() is None
