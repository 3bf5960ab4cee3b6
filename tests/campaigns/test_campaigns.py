"""The campaigns of scripts/campaigns.py: they count what goes wrong, and find nothing wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def campaigns(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "campaigns.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1500,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def children():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from campaigns import children

        yield children


def run_in_workers(children, tmp_path, use, parts, **limits) -> dict[str, str]:
    """Return the outcome of each part, in two workers."""
    found = children.run_trials(
        [children.Trial("test", part, number) for number, part in enumerate(parts)],
        use,
        num_workers=2,
        limits=children.Limits(**{"seconds": 60.0, **limits}),
        folder=tmp_path,
    )
    return {trial.part: result["outcome"] for trial, result in found}


def test_a_crash_and_a_hang_are_counted_and_the_other_trials_go_on(children, tmp_path):
    def use(trial) -> dict:
        if trial.part == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        while trial.part == "hang":
            time.sleep(1)
        return {"outcome": "read"}

    parts = ["a", "crash", "b", "hang", "c"]
    outcomes = run_in_workers(children, tmp_path, use, parts, seconds=3.0)
    assert outcomes == {"a": "read", "crash": "died", "b": "read", "hang": "hang", "c": "read"}
    assert not list(tmp_path.iterdir())


def test_workers_have_a_limit_of_memory(children, tmp_path):
    def use(trial) -> dict:
        try:
            return {"outcome": "read", "size": len(bytearray(int(trial.part)))}
        except MemoryError:
            return {"outcome": "memory"}

    outcomes = run_in_workers(children, tmp_path, use, ["1000", str(2**31)], memory=2**30)
    assert outcomes == {"1000": "read", str(2**31): "memory"}


def test_a_reader_that_loses_a_good_record_breaks_the_promise(children, monkeypatch):
    from campaigns import fuzz, layouts
    from campaigns.report import GOOD

    whole = layouts.LAYOUTS["JSON lines"]

    def read_without_the_neighbour(folder: Path) -> dict:
        found = whole.read(folder)
        gone = [number for number in range(fuzz.NUM_RECORDS) if str(number) not in found]
        for number in gone:
            found.pop(str((number + 1) % fuzz.NUM_RECORDS), None)
        return found

    def outcomes() -> set[str]:
        trials = [children.Trial("fuzz", "JSON lines", number) for number in range(3)]
        return {fuzz.fuzz(0, trial)["outcome"] for trial in trials}

    assert outcomes() <= GOOD
    monkeypatch.setitem(
        layouts.LAYOUTS, "JSON lines", whole._replace(read=read_without_the_neighbour)
    )
    assert "lost" in outcomes() and "lost" not in GOOD


def test_damage_changes_a_file_and_says_what(children, tmp_path):
    from campaigns.damage import damage_file

    done = set()
    for seed in range(12):
        path = tmp_path / str(seed)
        path.write_bytes(bytes(range(100)))
        done.add(damage_file(path, np.random.default_rng(seed)).split()[1])
        assert not path.exists() or path.read_bytes() != bytes(range(100))
    assert done == {"bit", "cut", "deleted"}


def test_an_unknown_campaign_and_another_seed_are_refused(children, tmp_path):
    from campaigns.report import Results

    results = Results(tmp_path / "results.jsonl", 1)
    trial = children.Trial("fuzz", "CSV", 3)
    results.add(trial, {"outcome": "read"})
    assert Results(tmp_path / "results.jsonl", 1).missing([trial, trial._replace(number=4)]) == [
        trial._replace(number=4)
    ]
    with pytest.raises(SystemExit, match="has seed 1, not 2"):
        Results(tmp_path / "results.jsonl", 2)


@pytest.mark.slow
@pytest.mark.command
@pytest.mark.parametrize("name", ["kills", "signals", "damage", "fuzz", "attacks"])
def test_few_trials_of_each_campaign_break_no_promise(name):
    done = campaigns(name, "--quick", "--processes", 2)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "0 of " in done.stdout and " trials broke a promise" in done.stdout
