import pytest

from regionclip_jax.reporting.runs import mean_metrics, runs_table

RUNS = [
    {"CLIP": {"AP50_all": 10.0, "top1_all": 1.0}, "student": {"AP50_all": 14.0, "top1_all": None}},
    {"CLIP": {"AP50_all": 20.0, "top1_all": 1.0}, "student": {"AP50_all": 26.0, "top1_all": 2.0}},
]


def test_models_and_differences_within_runs_have_mean_and_deviation():
    table = runs_table(RUNS, ["CLIP", "student"], {"gain": ("CLIP", "student")})
    assert table.splitlines() == [
        "| 2 runs, mean ± standard deviation | CLIP | student | gain |",
        "|---|---:|---:|---:|",
        "| AP50_all | 15.0 ± 7.1 | 20.0 ± 8.5 | +5.0 ± 1.4 |",
    ]
    # The student's second metric is missing in one run, CLIP's is in both.
    assert runs_table(RUNS, ["CLIP"], {}).splitlines()[-1] == "| top1_all | 1.0 ± 0.0 |"


def test_one_run_has_no_deviation():
    text = runs_table(RUNS[:1], ["CLIP"], {})
    assert "| 1 run, mean" in text and "| AP50_all | 10.0 ± 0.0 |" in text


def test_means_are_those_of_the_shared_metrics():
    assert mean_metrics(RUNS, ["CLIP", "student"]) == {
        "CLIP": {"AP50_all": pytest.approx(15.0)},
        "student": {"AP50_all": pytest.approx(20.0)},
    }
