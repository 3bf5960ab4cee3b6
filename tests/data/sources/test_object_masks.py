import subprocess
import sys

import numpy as np
import pytest

from regionclip_jax.data.sources.image_opening import MOST_PIXELS
from regionclip_jax.data.sources.object_masks import object_mask, read_runs

BOX = np.array([0, 0, 4, 4], np.float32)


@pytest.mark.parametrize(
    ("segmentation", "size"),
    [
        ({"size": [2**20, 2**20], "counts": [2**40]}, (2**20, 2**20)),
        ({"size": [2**62, 2], "counts": [2**63]}, (2**62, 2)),
        ({"size": [4, 4], "counts": [8, -8, 16]}, (4, 4)),
        ({"size": [4, 4], "counts": [16.0]}, (4, 4)),
        ({"size": [4, 4], "counts": ["16"]}, (4, 4)),
        ({"size": [4, 4], "counts": "\n"}, (4, 4)),
        ({"size": [4, 4], "counts": "é"}, (4, 4)),
        ({"size": [4, 4], "counts": None}, (4, 4)),
        ({"size": None, "counts": [16]}, (4, 4)),
        ([[1e300, 0, 4, 0, 4, 4]], (4, 4)),
        ([[2**63, 0, 4, 0, 4, 4]], (4, 4)),
        ([[-1e6, 0, 4, 0, 4, 4]], (4, 4)),
        ([[float("nan"), 0, 4, 0, 4, 4]], (4, 4)),
        ([[float("inf"), 0, 4, 0, 4, 4]], (4, 4)),
        ([["1", 0, 4, 0, 4, 4]], (4, 4)),
        ([[None, 0, 4, 0, 4, 4]], (4, 4)),
        ([[[1], 0, 4, 0, 4, 4]], (4, 4)),
    ],
    ids=str,
)
def test_outlines_of_impossible_sizes_and_values_are_refused(segmentation, size):
    with pytest.raises(ValueError):
        object_mask(segmentation, BOX, size, 4)


def test_run_lengths_of_the_largest_image_are_read():
    runs = {"size": [1, MOST_PIXELS], "counts": [MOST_PIXELS]}
    assert read_runs(runs, 1, MOST_PIXELS) == [MOST_PIXELS]


def test_a_text_of_one_endless_run_is_refused():
    """In a process of its own: without a bound this takes hours."""
    code = (
        "from regionclip_jax.data.sources.object_masks import read_runs\n"
        "try: read_runs({'size': [4, 4], 'counts': 'o' * 10**7}, 4, 4)\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "expected numbers with the sum 16" in done.stdout
