import pytest

from regionclip_jax.reporting.stages import Stages, readable_seconds, seconds_of_all_stages


def test_the_remaining_time_scales_with_the_running_stage():
    now = [100.0]
    stages = Stages({"drawing": 10.0, "training": 40.0, "evaluation": 20.0}, clock=lambda: now[0])
    assert seconds_of_all_stages(1.0) is None

    def train():
        now[0] += 20.0
        # 20 seconds and 60 more are twice the usual 40, so the evaluation takes twice its 20.
        assert seconds_of_all_stages(60.0) == pytest.approx(60.0 + 2 * 20.0)
        now[0] += 60.0
        return "model"

    assert stages.run("drawing", lambda: None) is None  # complete already: tells nothing
    assert stages.run("training", train) == "model"
    assert stages.run("evaluation", lambda: seconds_of_all_stages(5.0)) == 5.0
    assert stages.seconds == {"drawing": 0.0, "training": 80.0, "evaluation": 0.0}
    assert seconds_of_all_stages(1.0) is None


def test_a_failed_stage_is_no_longer_the_running_one():
    stages = Stages({"training": 40.0})
    with pytest.raises(ZeroDivisionError):
        stages.run("training", lambda: 1 / 0)
    assert seconds_of_all_stages(1.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185.0, "3m 05s"), (7625.0, "2h 07m"),
        (3 * 86400.0 + 4 * 3600, "3d 04h"),
    ],
)  # fmt: skip
def test_durations_are_written_in_their_two_largest_units(seconds, text):
    assert readable_seconds(seconds) == text
