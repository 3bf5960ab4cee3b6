import pytest

from regionclip_jax.data.sources.skipped import SkipCounter, TooManySkipped


def test_few_skipped_records_are_counted_and_tolerated():
    counter = SkipCounter(max_fraction=0.1, minimum=2)
    for _ in range(10):
        counter.add(20, ["broken"])
    assert (counter.num_records, counter.num_skipped) == (200, 10)


def test_too_many_skipped_records_stop_the_run_with_count_limit_and_last_texts():
    counter = SkipCounter(max_fraction=0.1, minimum=1)
    counter.add(20, ["first", "second"])
    with pytest.raises(
        TooManySkipped, match=r"(?s)6 of 40 .* 10\.00%.*third\n  fourth\n  fifth"
    ) as e:
        counter.add(20, ["sixth", "third", "fourth", "fifth"])
    assert "first" not in str(e.value)


def test_below_the_minimum_the_fraction_is_not_checked():
    counter = SkipCounter(max_fraction=0.01, minimum=3)
    counter.add(2, ["a", "b"])
    with pytest.raises(TooManySkipped, match="3 of 4"):
        counter.add(2, ["c"])


def test_a_limit_of_zero_stops_at_the_first_skipped_record_but_not_before():
    counter = SkipCounter(max_fraction=0.0, minimum=0)
    counter.add(8, [])
    with pytest.raises(TooManySkipped, match="1 of 16"):
        counter.add(8, ["a"])


def test_only_the_first_texts_are_logged(caplog):
    counter = SkipCounter(max_fraction=1.0, minimum=1)
    with caplog.at_level("WARNING"):
        counter.add(40, [f"number {n}" for n in range(30)])
    assert "number 19" in caplog.text and "number 20" not in caplog.text
    assert "not logged" in caplog.text


def test_a_limit_outside_of_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="max_skipped_fraction"):
        SkipCounter(max_fraction=5.0, minimum=1)
