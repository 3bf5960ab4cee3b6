"""Matching and sampling against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.ops.matching import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    match_boxes,
    sample_examples,
    sampled_labels,
)

# The grid is coarse, so that equal overlaps and exact thresholds are common.
boxes_of = st.lists(
    st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 5)] * 2), min_size=1, max_size=7
)


def as_boxes(rows) -> np.ndarray:
    return np.array([[x, y, x + w, y + h] for x, y, w, h in rows], np.float32)


def iou(a, b) -> np.float32:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return np.float32(0)
    common = np.float32(width * height)
    area = np.float32((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return common / (area - common)


def by_loops(boxes, targets, low, high, allow_low_quality):
    matched, labels = [], []
    for box in boxes:
        overlaps = [iou(box, target) for target in targets]
        best = max(overlaps)
        matched.append(overlaps.index(best))
        labels.append(POSITIVE if best >= high else NEGATIVE if best < low else IGNORED)
    if allow_low_quality:
        for target in targets:
            overlaps = [iou(box, target) for box in boxes]
            for row, overlap in enumerate(overlaps):
                if overlap > 0 and overlap == max(overlaps):
                    labels[row] = POSITIVE
    return matched, labels


@pytest.mark.property
@given(boxes_of, boxes_of, st.sampled_from([(0.5, 0.5), (0.3, 0.7), (0.25, 0.5)]), st.booleans())
def test_matching_equals_plain_loops(boxes, targets, thresholds, allow_low_quality):
    low, high = (np.float32(value) for value in thresholds)
    boxes, targets = as_boxes(boxes), as_boxes(targets)
    padded = np.concatenate([targets, boxes])[:7]
    padded = np.pad(padded, ((0, 7 - len(padded)), (0, 0)))
    mask = np.arange(7) < len(targets)
    rows = np.pad(boxes, ((0, 7 - len(boxes)), (0, 0)))
    matched, labels = match_boxes(
        jnp.asarray(rows),
        jnp.asarray(padded),
        jnp.asarray(mask),
        negative_below=float(low),
        positive_from=float(high),
        allow_low_quality=allow_low_quality,
    )
    expected = by_loops(boxes, targets, low, high, allow_low_quality)
    np.testing.assert_array_equal(matched[: len(boxes)], expected[0])
    np.testing.assert_array_equal(labels[: len(boxes)], expected[1])


@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_without_ground_truth_every_box_is_a_negative(allow_low_quality):
    boxes = jnp.array([[0.0, 0, 4, 4], [2, 2, 3, 9]])
    _, labels = match_boxes(
        boxes, boxes, jnp.zeros(2, bool),
        negative_below=0.5, positive_from=0.5, allow_low_quality=allow_low_quality,
    )  # fmt: skip
    assert (labels == NEGATIVE).all()


def test_a_target_without_overlapping_boxes_gives_no_positive():
    boxes = jnp.array([[0.0, 0, 4, 4], [2, 2, 3, 9]])
    far = jnp.array([[90.0, 90, 99, 99]])
    _, labels = match_boxes(
        boxes, far, jnp.ones(1, bool),
        negative_below=0.3, positive_from=0.7, allow_low_quality=True,
    )  # fmt: skip
    assert (labels == NEGATIVE).all()


@pytest.mark.property
@given(
    st.lists(st.sampled_from([POSITIVE, NEGATIVE, IGNORED]), min_size=1, max_size=30),
    st.integers(0, 2**31 - 1),
    st.integers(1, 12),
)
def test_the_number_of_samples_is_limited_by_candidates_and_settings(labels, seed, num_samples):
    row_labels = np.array(labels + [NEGATIVE] * 3)
    mask = np.arange(len(row_labels)) < len(labels)
    rows, is_positive, real = sample_examples(
        jax.random.key(seed),
        jnp.asarray(row_labels),
        jnp.asarray(mask),
        num_samples=num_samples,
        positive_fraction=0.25,
    )
    num_positives = min(labels.count(POSITIVE), int(num_samples * 0.25))
    num_negatives = min(labels.count(NEGATIVE), num_samples - num_positives)
    assert is_positive.sum() == num_positives and real.sum() == num_positives + num_negatives
    assert is_positive[:num_positives].all() and real[: num_positives + num_negatives].all()
    chosen = np.asarray(rows)[np.asarray(real)]
    assert len(set(chosen.tolist())) == len(chosen) and (chosen < len(labels)).all()
    chosen_labels = row_labels[chosen]
    assert (chosen_labels[:num_positives] == POSITIVE).all() and (
        chosen_labels[num_positives:] == NEGATIVE
    ).all()


def test_every_positive_is_drawn_equally_often():
    labels = jnp.array([POSITIVE] * 5 + [NEGATIVE] * 5)

    def draw(key):
        kept = sampled_labels(key, labels, num_samples=4, positive_fraction=0.5)
        return kept != IGNORED

    frequencies = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)).mean(0)
    np.testing.assert_allclose(frequencies, 0.4, atol=0.04)


def test_sampled_labels_keep_only_the_labels_of_the_sample():
    labels = jnp.array([POSITIVE, NEGATIVE, IGNORED, NEGATIVE, POSITIVE, NEGATIVE])
    kept = sampled_labels(jax.random.key(1), labels, num_samples=4, positive_fraction=0.5)
    assert ((kept == labels) | (kept == IGNORED)).all()
    assert (kept == POSITIVE).sum() == 2 and (kept == NEGATIVE).sum() == 2
