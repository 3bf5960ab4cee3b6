"""Marks that tests of several folders share."""

import pytest


def on_accelerators(test):
    """Mark a test that runs on one device of any kind, to run once more on a GPU or TPU."""
    return pytest.mark.gpu(pytest.mark.tpu(test))
