import pytest

from regionclip_jax.data.sources.skipped import FaultCounter


def test_few_faults_are_counted_and_put_up_with():
    counter = FaultCounter(limit_fraction=0.1, minimum=2)
    for _ in range(10):
        counter.add(20, ["broken"])
    assert (counter.num_records, counter.num_faults) == (200, 10)


def test_too_many_faults_stop_the_run_with_count_limit_and_the_last_texts():
    counter = FaultCounter(limit_fraction=0.1, minimum=1)
    counter.add(20, ["first", "second"])
    with pytest.raises(
        RuntimeError, match=r"(?s)6 of 40 .* 10\.00%.*third\n  fourth\n  fifth"
    ) as e:
        counter.add(20, ["sixth", "third", "fourth", "fifth"])
    assert "first" not in str(e.value)


def test_below_the_minimum_the_fraction_is_not_looked_at():
    counter = FaultCounter(limit_fraction=0.01, minimum=3)
    counter.add(2, ["a", "b"])
    with pytest.raises(RuntimeError, match="3 of 4"):
        counter.add(2, ["c"])


def test_a_limit_of_zero_stops_at_the_first_fault_but_not_before():
    counter = FaultCounter(limit_fraction=0.0, minimum=0)
    counter.add(8, [])
    with pytest.raises(RuntimeError, match="1 of 16"):
        counter.add(8, ["a"])


def test_only_the_first_texts_are_logged(caplog):
    counter = FaultCounter(limit_fraction=1.0, minimum=1, num_logged=2)
    with caplog.at_level("WARNING"):
        counter.add(4, ["one", "two", "three", "four"])
    assert "two" in caplog.text and "three" not in caplog.text
    assert "not logged" in caplog.text


def test_a_limit_that_is_no_fraction_is_refused():
    with pytest.raises(ValueError, match="limit_fraction"):
        FaultCounter(limit_fraction=5.0, minimum=1)
