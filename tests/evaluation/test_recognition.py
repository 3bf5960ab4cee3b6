import numpy as np
import pytest

from regionclip_jax.evaluation import recognition

# 0 red disc, 1 blue disc, 2 red star, 3 blue star
ACTUAL = np.array([0, 0, 1, 2, 3, 3])
PREDICTED = np.array([0, 1, 1, 0, 3, 2])
NAMES = ["red disc", "blue disc", "red star", "blue star"]


def test_top1_counts_regions_overall_and_by_group():
    scores = recognition.region_top1(
        PREDICTED, ACTUAL, class_groups={"base": {0, 1}, "novel": {2, 3}, "none": {9}}
    )
    assert scores == pytest.approx(
        {"top1": 50.0, "top1_base": 200 / 3, "top1_novel": 100 / 3, "top1_none": None}
    )


def test_confusions_are_ordered_by_frequency_then_class():
    predicted, actual = np.append(PREDICTED, [0]), np.append(ACTUAL, [2])
    assert recognition.most_confused(predicted, actual, names=NAMES, limit=2) == [
        ("red star", "red disc", 2),
        ("red disc", "blue disc", 1),
    ]


def test_without_errors_or_regions_no_confusions_are_listed():
    nothing = np.array([], np.int64)
    assert recognition.most_confused(ACTUAL, ACTUAL, names=NAMES) == []
    assert recognition.most_confused(nothing, nothing, names=NAMES) == []
    assert recognition.region_top1(nothing, nothing, class_groups={}) == {"top1": None}


def test_arrays_of_unequal_lengths_and_classes_without_names_are_refused():
    with pytest.raises((ValueError, TypeError), match=r"\(2,\) and \(6,\)|i64\[6\]"):
        recognition.region_top1(PREDICTED[:2], ACTUAL, class_groups={})
    with pytest.raises(ValueError, match="true class 3 is not among the 3"):
        recognition.most_confused(np.zeros(6, int), ACTUAL, names=NAMES[:3])
