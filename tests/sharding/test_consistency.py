"""Consistency check across processes: compared facts and error messages."""

import pytest

from regionclip_jax.sharding.consistency import (
    first_difference,
    flat,
    require_consistent,
    require_shared,
    unshared,
)

NAMES = ("process 0 (a)", "process 1 (b)", "process 2 (c)")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"run": {"seed": 0, "batch_size": 16}, "canvas": (64,)}, "run.batch_size: 8 in"),
        ({"run": {"seed": 1, "batch_size": 8}, "canvas": (64, 32)}, "canvas.1: 'absent' in"),
        ({"run": {"batch_size": 8}, "canvas": (64,)}, "run.seed: 0 in"),
    ],
)
def test_the_first_key_that_differs_is_named_with_both_values_and_processes(other, message):
    usual = {"run": {"seed": 0, "batch_size": 8}, "canvas": (64,)}
    error = first_difference([flat(usual), flat(usual), flat(other)], NAMES)
    assert error.startswith(message) and "process 0 (a)" in error and "process 2 (c)" in error


def test_facts_are_compared_leaf_by_leaf_and_lists_equal_tuples():
    assert flat({"a": {"b": (1, 2)}, "c": []}) == {"a.b.0": 1, "a.b.1": 2, "c": []}
    assert flat({"a": [1], "c": ()}) == flat({"a": (1,), "c": []})


def test_the_processes_that_do_not_see_a_folder_are_named(tmp_path):
    error = unshared(tmp_path, [True, False, False], NAMES)
    assert f"--workdir {tmp_path}" in error and "process 1 (b), process 2 (c);" in error
    many = unshared(tmp_path, [True] + [False] * 9, [f"process {n}" for n in range(10)])
    assert "process 1, process 2, process 3 and 6 more;" in many


def test_one_process_passes_the_consistency_check_without_files(tmp_path):
    require_consistent({"seed": 0})
    require_shared(tmp_path)
    assert not list(tmp_path.iterdir())
