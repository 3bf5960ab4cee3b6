"""The accelerator check as a command, and its judgement of measurements."""

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from regionclip_jax.models.presets import PRESETS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from accelerator import measuring, pretrain, profile  # noqa: E402
from accelerator.check import Check  # noqa: E402
from accelerator.goals import GOALS  # noqa: E402
from accelerator.parts import PARTS  # noqa: E402
from accelerator.recorder import Recorder  # noqa: E402
from accelerator.report import Ended, markdown  # noqa: E402
from benchmarks.timing import Work  # noqa: E402


@pytest.fixture
def check(environment, tmp_path):
    """``check(*arguments)``: the completed process, started in another folder."""

    def run(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(ROOT / "scripts" / "check_accelerator.sh"), *arguments],
            cwd=tmp_path, env=environment | {"PYTHON": python}, capture_output=True, text=True,
            timeout=900, check=False,
        )  # fmt: skip

    return run


@pytest.mark.command
def test_a_part_measures_the_cpu_and_reports_the_missing_accelerator(check, tmp_path):
    done = check("--small", "--parts=facts", "--output=found")
    assert done.returncode == 0, done.stderr
    assert "no accelerator, measuring the CPU" in done.stdout
    record = json.loads((tmp_path / "found" / "facts.json").read_text())
    assert record["status"] == "done" and record["facts"]["backend"] == "cpu"
    assert len(record["rows"]) == 4 and all(
        row.get("flops_per_s", row.get("bytes_per_s")) > 0 for row in record["rows"]
    )
    report = (tmp_path / "found" / "report.md").read_text()
    assert "No accelerator: these are numbers of the CPU" in report
    assert "| facts | done |" in report and "not on this device" in report


def test_parts_beyond_the_budget_are_not_run(tmp_path):
    arguments = argparse.Namespace(output=tmp_path, budget=15, small=True, parts=list(PARTS))
    ahead = [part for part in PARTS if part.name in ("pretrain", "train")]
    for part in ahead:
        ended = Check(arguments)._run_part(part, ahead)
        assert ended.status == "not run" and not (tmp_path / f"{part.name}.log").exists()
        assert "15 s of the budget are left, 20 are needed" in ended.why


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("pass", "done", ""),
        ("import time; print(1, flush=True); time.sleep(60)", "cut off", "its 2 s were over"),
        ("print('before'); raise ValueError('of it')", "failed", "ValueError: of it"),
    ],
)
def test_the_status_of_a_part_depends_on_the_end_of_its_process(tmp_path, program, status, reason):
    arguments = argparse.Namespace(output=tmp_path, budget=60, small=True, parts=list(PARTS))
    log = tmp_path / "part.log"
    actual = Check(arguments)._wait([sys.executable, "-c", program], log, 2)
    assert actual[0] == status and reason in actual[1]
    assert log.exists()


@pytest.mark.command
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts=fact"], "--parts: fact; expected facts, parity, ops"),
        (["--budget=0"], "--budget: 0; expected seconds above 0"),
        (["--output=taken"], "--output: taken is a file; expected a folder"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(check, tmp_path, arguments, message):
    (tmp_path / "taken").touch()
    done = check(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.command
def test_an_interpreter_without_jax_is_named_with_the_missing_packages(check, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    done = check("--small", python=python)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert python in done.stderr and "pip install jax flax optax" in done.stderr


@pytest.mark.slow
@pytest.mark.command
def test_all_parts_run_on_a_cpu_at_small_sizes(check, tmp_path):
    done = check("--small", "--budget=840", "--output=found")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "found"
    for part in PARTS:
        record = json.loads((folder / f"{part.name}.json").read_text())
        assert record["status"] == "done" and not record["not_run"], (part.name, record)
        failed = [row for row in record["rows"] if isinstance(row.get("error"), str)]
        assert not failed, (part.name, failed)
    assert json.loads((folder / "train.json").read_text())["facts"]["bit_equal"] is True
    report = (folder / "report.md").read_text()
    assert "| a job killed and resumed ends bit-equal | bit-equal | met |" in report
    assert "within the CPU's tolerances" in report and "**missed**" not in report


def verdicts(records: dict) -> dict[str, tuple]:
    return {goal.text: goal.judge(records) for goal in GOALS}


def records_of_an_h200(utilization: float, ratio: float) -> dict:
    steps = dict(name="step", preset="RN50", dtype="bfloat16", size="RN50, 24 images")
    timing = {"median_s": 1.0, "ratio": ratio}
    whole = [dict(name="all", dtype="bfloat16", images=images, torch=timing) for images in (1, 16)]
    ops = [
        {"name": name, "dtype": "bfloat16", "torch": timing}
        for name in ("RoIAlign, both ways", "NMS, 12000 -> 2000", "soft-NMS per class")
    ]
    parity = {"name": "nms", "mode": "highest", "compared": 3, "beyond": []}
    return {
        "facts": {"facts": {"backend": "gpu", "device": "NVIDIA H200"}},
        "parity": {"rows": [parity]},
        "ops": {"rows": ops},
        "pretrain": {"rows": [steps | {"utilization": utilization, "torch compiled": timing}]},
        "detect": {"rows": whole},
        "train": {"facts": {"bit_equal": True}},
    }


def test_goals_are_judged_by_the_measurements_alone():
    met = verdicts(records_of_an_h200(0.5, 4.0))
    assert all(verdict is True for _, verdict in met.values()), met
    missed = verdicts(records_of_an_h200(0.44, 0.9))
    kept = [text for text, (_, verdict) in missed.items() if verdict]
    assert len(kept) == 2 and "parity" in kept[0] and "resumed" in kept[1]
    assert "44.0%" in missed[GOALS[1].text][0]
    assert all(verdict is None for _, verdict in verdicts({}).values())


def test_a_goal_of_one_device_is_not_judged_on_another():
    records = records_of_an_h200(0.5, 4.0)
    records["facts"]["facts"] = {"backend": "tpu", "device": "TPU v5e"}
    judged = [text for text, (_, verdict) in verdicts(records).items() if verdict is not None]
    assert len(judged) == 2
    records["parity"]["rows"].append({"name": "iou", "mode": "highest", "error": "crashed"})
    measured, verdict = verdicts(records)[GOALS[0].text]
    assert verdict is False and "failed: iou" in measured


def test_the_report_has_a_row_for_every_part_and_the_errors_of_failed_parts():
    failed = Ended(PARTS[1], "failed", 3.0, {"rows": []}, "exit status 1: ValueError: a|b\nmore")
    ended = [Ended(PARTS[0], "done", 2.0, {"rows": []}), failed]
    text = markdown(ended, budget=60, small=False, parts=list(PARTS))
    assert "| parity | failed | 3 | 0 | exit status 1: ValueError: a\\|b<br>more |" in text
    assert all(f"| {part.name} | not yet |" in text for part in PARTS[2:])


def test_a_size_that_exceeds_the_memory_is_halved_until_it_fits(tmp_path, monkeypatch):
    built = []

    def work(recorder, size):
        def call():
            if size.images > 6:
                raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while allocating")
            return jnp.zeros(())

        built.append(size.images)
        return Work("step", call, items=size.images, unit="images")

    monkeypatch.setattr(pretrain, "_work", work)
    recorder = Recorder(tmp_path / "pretrain.json", 100, small=True)
    size = pretrain.Size("scenes", "float32", 24)
    pretrain._measure_or_halve(recorder, size, work(recorder, size), peak=1.0)
    record = json.loads((tmp_path / "pretrain.json").read_text())
    assert built == [24, 12, 6]
    assert [row["images"] for row in record["rows"]] == [6]
    assert len(record["notes"]) == 2 and "next 12 images" in record["notes"][0]


def test_another_error_is_written_to_its_row_and_does_not_stop_the_part(tmp_path):
    recorder = Recorder(tmp_path / "ops.json", 100, small=True)

    def broken():
        raise ValueError("of another kind")

    assert measuring.measure(recorder, Work("broken", broken), 1)
    assert measuring.measure(recorder, Work("sound", lambda: jnp.ones(2)), 2)
    first, second = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert first["error"] == "ValueError: of another kind" and len(second["ours"]["runs_s"]) == 2


def test_measurements_without_time_left_are_listed(tmp_path):
    recorder = Recorder(tmp_path / "ops.json", 0.0, small=True)
    assert not recorder.has_time("NMS")
    assert json.loads((tmp_path / "ops.json").read_text())["not_run"] == ["NMS"]


def test_a_trace_gives_a_table_of_kernels_with_their_calls(tmp_path):
    step = jax.jit(lambda x: jnp.sort(jnp.sin(x @ x), -1))
    x = jnp.ones((200, 200))
    step(x).block_until_ready()
    with jax.profiler.trace(tmp_path):
        for _ in range(3):
            step(x).block_until_ready()
    (trace,) = tmp_path.rglob("*.xplane.pb")
    table = profile.kernels(jax.profiler.ProfileData.from_file(str(trace)))
    assert [ms for *_, ms in table] == sorted((ms for *_, ms in table), reverse=True)
    sorts = [calls for name, calls, _ in table if "sort" in name]
    assert sorts and sum(sorts) % 3 == 0


def test_unknown_arguments_of_a_mode_are_refused():
    args = measuring.arguments(pretrain.pretraining, images=3)
    assert isinstance(args, argparse.Namespace) and args.images == 3 and args.preset in PRESETS
    with pytest.raises(ValueError, match=r"no arguments \['pictures'\]"):
        measuring.arguments(pretrain.pretraining, pictures=3)
