"""Marks for tests of several folders."""

import pytest


def on_accelerators(test):
    """Mark a test for one device of any backend, so that it also runs on a GPU or TPU."""
    return pytest.mark.gpu(pytest.mark.tpu(test))
