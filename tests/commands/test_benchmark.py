"""Output of the benchmark command on a few pixels, without checks of its speed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.command


@pytest.fixture
def benchmark(environment, tmp_path):
    def run(*arguments: str) -> dict:
        file = tmp_path / "numbers.json"
        done = start(environment, *arguments, f"--json={file}")
        assert done.returncode == 0, done.stderr
        results = json.loads(file.read_text())
        assert results["what"] == arguments[0] and results["backend"] == "cpu"
        assert results["cpu_count"] >= 1 and {"jax", "jaxlib", "python"} <= set(results["versions"])
        for row in results["rows"]:
            ours = row["ours"]
            assert 0 < ours["lowest_s"] <= ours["median_s"] <= ours["highest_s"]
            assert ours["first_s"] > 0 and len(ours["runs_s"]) == results["arguments"]["repeats"]
            assert "torch" not in row and row["name"] in done.stdout
        return results

    return run


def start(environment, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "scripts/benchmark.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_operations_are_timed_with_gradients_and_for_every_implementation(benchmark):
    results = benchmark(
        "ops", "--height=64", "--width=64", "--channels=4", "--crop=2", "--regions", "3",
        "--candidates=20", "--kept=5", "--scored=6", "--classes", "2", "3", "--tokens=20",
        "--heads=1", "--repeats=2",
    )  # fmt: skip
    names = [row["name"] for row in results["rows"]]
    assert len(names) == 13 and len(set(names)) == 13
    assert all(row["memory_bytes"] > 0 for row in results["rows"])
    assert {"gather", "matmul", "matmul_rows"} == {name.split(", ")[2] for name in names[:6]}
    assert results["arguments"]["regions"] == [3] and results["peak"] is None


def test_the_text_tower_has_a_rate_and_a_utilization_of_a_documented_peak(benchmark):
    results = benchmark("text", "--preset=scenes", "--prompts=2", "--repeats=1")
    (row,) = results["rows"]
    assert row["items_per_s"] == pytest.approx(2 / row["ours"]["median_s"])
    assert row["model_flops"] > 1e6 and row["utilization"] > 0
    assert "measured in this run" in results["peak"]["source"]


def test_the_data_benchmark_states_the_cores_that_a_step_needs(benchmark, coco_folder):
    sizes = "--short_side=64", "--batch=3", "--threads=1", "--repeats=2"
    synthetic = benchmark("data", "--images=4", *sizes)
    assert len(synthetic["rows"]) == 2 and min(synthetic["reading"].values()) > 0
    rate = synthetic["rows"][0]["items_per_s"]
    assert synthetic["cores_needed"] == pytest.approx(3 / 0.1 / rate)
    where = f"--path={coco_folder}", "--split=train", "--max_skipped_fraction=0.5"
    given = benchmark("data", *where, "--step_ms=50", *sizes)
    assert given["cores_needed"] == pytest.approx(60 / given["rows"][0]["items_per_s"])


@pytest.mark.slow
def test_the_folder_benchmark_compares_batches_and_drawing_with_single_images(benchmark):
    results = benchmark(
        "folder", "--preset=scenes", "--localizer=small", "--images=5", "--batch=2",
        "--short_side=64", "--max_long_side=96", "--repeats=1",
    )  # fmt: skip
    names = [row["name"] for row in results["rows"]]
    assert names == [
        "batch 1", "batch 2", "batch 2, --no_drawing",
        "decoding alone, one core", "drawing alone, one core",
    ]  # fmt: skip
    single = results["rows"][0]["ours"]["median_s"]
    for row in results["rows"]:
        assert row["items_per_s"] == pytest.approx(5 / row["ours"]["median_s"])
        assert row["ratio"] == pytest.approx(single / row["ours"]["median_s"])
    assert 0 <= results["drawn"] <= 5


def test_missing_pytorch_is_a_one_line_error(environment):
    if all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
        pytest.skip("PyTorch is here")
    done = start(environment, "text", "--torch")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--torch: torch" in done.stderr and "pip install" in done.stderr
