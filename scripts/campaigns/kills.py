"""Kill trainings, and stop them by signals, at random moments; then let them end."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from campaigns import children
from campaigns.children import HANG, Trial
from campaigns.trainings import HALF, MOST_SECONDS, NUM_STEPS, Reference, Trainings

# In this order; a trial takes the part after that of the trial before.
MOMENTS = ("loading", "steps", "saving", "export")
# docs/running.md lists them; the commands here set --preempted_status=75.
_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}


def measure(trainings: Trainings, name: str) -> Reference:
    """Run a training without interruption, and once to HALF of its steps for the damage."""
    workdir = trainings.folder / f"whole-{name}"
    half = trainings.folder / f"half-{name}"
    # The first run fills the cache of compiled programs, so that the second has the usual speed.
    for folder, assignments in ((half, [f"--config.run.num_steps={HALF}"]), (workdir, [])):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        run = _Run(trainings.command(name, folder, *assignments), folder)
        seconds = run.seconds_of_steps(1, NUM_STEPS if folder == workdir else HALF)
        if run.wait() != 0:
            raise RuntimeError(f"the uninterrupted run failed:\n{run.text()}")
    first, last = seconds
    return Reference(name, workdir, trainings.digests(workdir), first, last, run.seconds)


def kill(trainings: Trainings, references: dict[str, Reference], seed: int, trial: Trial) -> dict:
    """Kill a training once or twice, let it end, and compare all its arrays."""
    rng = np.random.default_rng([seed, 1, trial.number])
    reference = references[trial.part]
    workdir = _workdir(trainings, trial)
    moments = []
    for _ in range(1 + int(rng.integers(2))):
        moment = MOMENTS[(trial.number + len(moments)) % len(MOMENTS)]
        run = _Run(trainings.command(trial.part, workdir), workdir)
        run.wait_for(moment, reference, rng)
        children.kill(run.child)
        moments.append(moment if run.wait() == -signal.SIGKILL else "end")
    return _finish(trainings, reference, workdir) | {"moment": ", ".join(moments)}


def interrupt(
    trainings: Trainings, references: dict[str, Reference], seed: int, trial: Trial
) -> dict:
    """Stop a training by SIGTERM or SIGINT, and compare its status and then its arrays."""
    rng = np.random.default_rng([seed, 2, trial.number])
    reference = references[trial.part]
    workdir = _workdir(trainings, trial)
    moment = MOMENTS[trial.number % len(MOMENTS)]
    number = (signal.SIGTERM, signal.SIGINT)[int(rng.integers(2))]
    run = _Run(trainings.command(trial.part, workdir), workdir)
    run.wait_for(moment, reference, rng)
    run.signal(number)
    begin = time.monotonic()
    status = run.wait()
    seconds = time.monotonic() - begin
    where = {"moment": f"{number.name} in {moment}", "seconds_to_end": round(seconds, 2)}
    # A run that was already at its end may end as usual.
    if status != _STATUS[number] and not (status == 0 and "model written" in run.text()):
        return where | {
            "outcome": HANG if status is None else "wrong status",
            "text": f"status {status}, expected {_STATUS[number]}: {run.last_line()}",
        }
    if "Traceback" in run.text():
        return where | {"outcome": "traceback", "text": run.last_line()}
    return where | _finish(trainings, reference, workdir)


def _workdir(trainings: Trainings, trial: Trial) -> Path:
    workdir = trainings.folder / f"{trial.campaign}-{trial.part}-{trial.number}"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    return workdir


def _finish(trainings: Trainings, reference: Reference, workdir: Path) -> dict:
    run = _Run(trainings.command(reference.name, workdir), workdir)
    if (status := run.wait()) != 0:
        outcome = HANG if status is None else "not resumed"
        return {"outcome": outcome, "text": f"{workdir}: status {status}: {run.last_line()}"}
    return compare(trainings, reference, workdir)


def compare(trainings: Trainings, reference: Reference, workdir: Path) -> dict:
    """Compare a run that ended with the uninterrupted one; remove its folder if they are equal."""
    found = trainings.digests(workdir)
    names = found.keys() | reference.digests.keys()
    other = sorted(name for name in names if found.get(name) != reference.digests.get(name))
    if other:
        text = f"{workdir}: {len(other)} of {len(names)} arrays differ, e.g. {other[0]}"
        return {"outcome": "other numbers", "text": text}
    shutil.rmtree(workdir)
    return {"outcome": "bit-equal"}


class _Run:
    """A training command in a child."""

    def __init__(self, command: Callable[[], None], workdir: Path):
        self._workdir = workdir
        self._log = workdir / "log.txt"
        self._skip = self._log.stat().st_size if self._log.exists() else 0
        self._status: int | None = None
        self._ended = False
        self._begin = time.monotonic()
        self.seconds = 0.0
        self.child = children.fork(command, self._log)

    def text(self) -> str:
        if not self._log.exists():
            return ""
        return self._log.read_bytes()[self._skip :].decode(errors="replace")

    def last_line(self) -> str:
        return (self.text().strip().splitlines() or ["no output"])[-1][:300]

    def wait(self) -> int | None:
        if not self._ended:
            self._status = children.wait(self.child, MOST_SECONDS)
            self._end()
        return self._status

    def signal(self, number: signal.Signals) -> None:
        if not self._poll():
            os.kill(self.child, number)

    def seconds_of_steps(self, *steps: int) -> list[float]:
        """Return the seconds from the start to the log lines of these steps."""
        seconds = []
        for step in steps:
            self._until(lambda step=step: f"step {step}/" in self.text())
            seconds.append(time.monotonic() - self._begin)
        return seconds

    def wait_for(self, moment: str, reference: Reference, rng: np.random.Generator) -> None:
        """Wait for a random moment of a part of the run, or for its end."""
        # From its first line on the process has its signal handlers.
        self._until(lambda: "devices:" in self.text())
        done = self._finished_saves()
        if moment == "loading":
            delay = rng.uniform(0, reference.first_step)
        elif moment == "steps":
            step = int(rng.integers(1, NUM_STEPS))
            self._until(lambda: f"step {step}/" in self.text() or "resumes after" in self.text())
            delay = rng.uniform(0, (reference.last_step - reference.first_step) / NUM_STEPS)
        elif moment == "saving":
            wanted = int(rng.integers(1, 4))
            self._until(lambda: self._begun_saves(done) >= wanted or self._is_exporting())
            delay = rng.uniform(0, 0.03)
        else:
            self._until(self._is_exporting)
            delay = rng.uniform(0, reference.end - reference.last_step)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and not self._poll():
            time.sleep(0.001)

    def _finished_saves(self) -> set[str]:
        return {path.name for path in (self._workdir / "checkpoints").glob("*")}

    def _begun_saves(self, done: set[str]) -> int:
        return len(self._finished_saves() - done)

    def _is_exporting(self) -> bool:
        return f"step {NUM_STEPS}/{NUM_STEPS}" in self.text()

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._poll():
            if time.monotonic() - self._begin > MOST_SECONDS:
                return
            time.sleep(0.002)

    def _poll(self) -> bool:
        if not self._ended:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            if ended:
                self._status = os.waitstatus_to_exitcode(status)
                self._end()
        return self._ended

    def _end(self) -> None:
        self._ended = True
        self.seconds = time.monotonic() - self._begin
