"""The script summarize_results.py as a command."""

import subprocess
import sys
from pathlib import Path

import pytest

from regionclip_jax.artifacts.results import read_results, write_results

ROOT = Path(__file__).parents[2]


def summarize(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/summarize_results.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    def make(**models):
        made = []
        for number in range(2):
            made.append(tmp_path / f"seed{number}")
            metrics = {
                name: {"AP50_novel": values[number], "AP": None} for name, values in models.items()
            }
            write_results(made[-1] / "results.json", metrics, details={"seed": number})
        return made

    return make


def test_two_models_are_listed_with_their_difference(folders):
    done = summarize(*folders(teacher=(10, 20), student=(13, 27)))
    assert done.returncode == 0, done.stderr
    assert "| teacher | student | difference |" in done.stdout
    assert "| AP50_novel | 15.0 ± 7.1 | 20.0 ± 9.9 | +5.0 ± 2.8 |" in done.stdout


def test_two_of_several_models_are_compared_and_all_runs_are_listed(folders, tmp_path):
    runs = folders(random=(1, 3), CLIP=(10, 20), RegionCLIP=(13, 27))
    done = summarize(*runs, "--compare", "CLIP", "RegionCLIP", "--write", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr
    assert "| random | CLIP | RegionCLIP | RegionCLIP - CLIP |" in done.stdout
    assert "| AP50_novel | 2.0 ± 1.4 | 15.0 ± 7.1 | 20.0 ± 9.9 | +5.0 ± 2.8 |" in done.stdout
    written = read_results(tmp_path / "all.json")
    assert written["CLIP"] == {"AP50_novel": 15.0}
    assert [run["details"]["seed"] for run in written["details"]["runs"]] == [0, 1]


def test_missing_models_are_refused(folders, tmp_path):
    runs = folders(teacher=(10, 20), student=(13, 27))
    done = summarize(*runs, "--compare", "teacher", "pupil")
    assert done.returncode == 2 and "['pupil'] are none of the models" in done.stderr
    write_results(tmp_path / "other" / "results.json", {"teacher": {}}, details={})
    done = summarize(*runs, tmp_path / "other")
    assert done.returncode == 2 and "give runs of one" in done.stderr
