"""Tiles of a large image, and the merging of their detections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.loading.tiles import merge_tiles, tile_boxes


@pytest.mark.property
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    side=st.integers(1, 40),
    overlap=st.floats(0, 0.95),
)
def test_tiles_cover_the_image_and_neighbours_overlap(height, width, side, overlap):
    covered = np.zeros((height, width), int)
    tiles = tile_boxes(height, width, side, overlap)
    assert len(set(tiles)) == len(tiles)
    for x1, y1, x2, y2 in tiles:
        assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
        assert 0 <= x1 and 0 <= y1 and x2 <= width and y2 <= height
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    for low, high in ((0, 2), (1, 3)):
        spans = sorted({(tile[low], tile[high]) for tile in tiles})
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
            # At least one pixel of each tile is new.
            assert end - start >= min(int(side * overlap), side - 1)


def plain_merge(boxes, scores, classes, tiles, threshold) -> list[int]:
    kept = []
    for row in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        x1, y1, x2, y2 = boxes[row]
        suppressed = False
        for other in kept:
            if classes[other] == classes[row] and tiles[other] != tiles[row]:
                u1, v1, u2, v2 = boxes[other]
                common = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
                smaller = min((x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1))
                suppressed = suppressed or common > threshold * smaller
        if not suppressed:
            kept.append(row)
    return kept


@pytest.mark.property
@given(count=st.integers(0, 40), seed=st.integers(0, 10**6), threshold=st.floats(0, 1))
def test_merging_equals_a_plain_loop(count, seed, threshold):
    """Whole numbers, so that areas are exact and scores are often equal."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 20, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 15, (count, 2))], 1)
    scores = rng.integers(0, 9, count) / 8
    classes, tiles = rng.integers(0, 2, (2, count))
    kept = merge_tiles(
        boxes.astype(np.float32), scores.astype(np.float32), classes, tiles, threshold
    )
    assert kept.tolist() == plain_merge(boxes.tolist(), scores, classes, tiles, threshold)


def test_an_object_that_an_edge_cuts_is_merged_with_its_whole():
    whole, part = [10, 10, 90, 50], [60, 10, 90, 50]  # IoU 0.375
    boxes = np.array([part, whole], np.float32)
    classes = np.array([1, 1])
    one, two = np.array([0, 0]), np.array([0, 1])
    scores = np.array([0.3, 0.8], np.float32)
    assert merge_tiles(boxes, scores, classes, two, 0.5).tolist() == [1]
    # Within a tile, the model's own suppression has decided; another class is another object.
    assert merge_tiles(boxes, scores, classes, one, 0.5).tolist() == [1, 0]
    assert merge_tiles(boxes, scores, np.array([1, 2]), two, 0.5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [(0, 0.2, "tile: found 0"), (9, 1.0, "overlap: found 1.0"), (9, float("nan"), "overlap: ")],
)
def test_tiles_that_are_none_are_refused(side, overlap, message):
    with pytest.raises(ValueError, match=message):
        tile_boxes(9, 9, side, overlap)
