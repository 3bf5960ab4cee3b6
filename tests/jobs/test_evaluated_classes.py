"""Which classes an evaluation is about, and which of them are novel."""

import dataclasses
from types import SimpleNamespace

import pytest

from regionclip_jax.jobs.evaluated_classes import choose_classes
from regionclip_jax.settings import ConfigError

SOURCE = SimpleNamespace(category_names=("cat", "hot_dog", "sofa"), category_ids=(3, 7, 9))


@pytest.fixture
def groups(evaluation):
    """``groups(split, trained)``: names by group, of a user's own three classes."""

    def choose(split, trained=None):
        section = dataclasses.replace(evaluation, class_split=str(split))
        classes = choose_classes(SOURCE, section, trained)
        assert classes.ids == SOURCE.category_ids
        return {
            group: {classes.source_names[i] for i in members}
            for group, members in classes.groups.items()
        }

    return choose


def test_base_classes_come_from_a_list_and_the_others_are_novel(groups, tmp_path):
    (tmp_path / "base.txt").write_text("sofa\n\ncat\nsofa\n")
    found = groups(tmp_path / "base.txt")
    assert found == {
        "novel": {"hot_dog"}, "base": {"cat", "sofa"}, "all": {"cat", "hot_dog", "sofa"}
    }  # fmt: skip


def test_base_classes_are_those_that_were_trained(groups):
    # As heads keep them: in words.
    found = groups("trained", ["hot dog", "cat", "zebra"])
    assert found["base"] == {"hot_dog", "cat"} and found["novel"] == {"sofa"}
    assert "novel" not in groups("trained", ["cat", "hot dog", "sofa"])
    assert groups("none") == {"all": {"cat", "hot_dog", "sofa"}}


def test_splits_that_cannot_be_are_refused(groups, tmp_path):
    (tmp_path / "base.txt").write_text("cat\nsettee\n")
    with pytest.raises(ConfigError, match=r"names \['settee'\]"):
        groups(tmp_path / "base.txt")
    with pytest.raises(ConfigError, match="'trained' needs a detector or localizer"):
        groups("trained")
    with pytest.raises(ConfigError, match="neither a file nor one of .*'trained'"):
        groups("coco_novel")
