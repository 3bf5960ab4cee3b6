"""Child processes that are forked from this one, whose imports they share.

A start of Python with JAX takes seconds, a fork milliseconds. Nothing here may start JAX's devices
in the parent: their threads do not survive a fork.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
HANG = "hang"
DIED = "died"


def fork(function: Callable[[], object], log: Path, folder: Path | None = None) -> int:
    """Return the id of a child that runs a function and ends as a Python process does.

    Args:
        log: file of the child's output.
        folder: working directory of the child.
    """
    sys.stdout.flush()
    with warnings.catch_warnings():
        # JAX warns of its threads, which do not run yet.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        # A child does not outlive a campaign that is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if folder is not None:
            os.chdir(folder)
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    # The end of a process is part of a trial: exit handlers, threads, the interpreter's own end.
    ctypes.pythonapi.Py_Exit(status)
    raise AssertionError("unreachable")


def wait(child: int, seconds: float) -> int | None:
    """Return the exit status, negative for a signal; None after ``seconds``, and kill the group."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill(child)
    os.waitpid(child, 0)
    return None


def kill(child: int) -> None:
    """Send SIGKILL to a child and to the processes that it started."""
    for send in (os.kill, os.killpg):
        try:
            send(child, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Trial(NamedTuple):
    """One attempt to break a promise; its number and the seed decide all of it."""

    campaign: str
    part: str
    number: int


class Limits(NamedTuple):
    """Limits of one trial: seconds, bytes of address space beyond the parent's (None: none)."""

    seconds: float
    memory: int | None = None


def run_trials(
    trials: Iterable[Trial],
    function: Callable[[Trial], dict],
    *,
    num_workers: int,
    limits: Limits,
    folder: Path,
    fresh: bool = False,
) -> Iterator[tuple[Trial, dict]]:
    """Run trials in workers that survive neither a hang nor a crash; yield results as they come.

    Args:
        function: returns a JSON object with ``outcome``.
        folder: of the logs.
        fresh: give every trial a worker of its own.
    """
    queue = iter(trials)
    workers: dict[int, _Worker] = {}  # by the descriptor of its answers
    try:
        while True:
            while len(workers) < num_workers and (trial := next(queue, None)) is not None:
                worker = _Worker(function, limits.memory, folder)
                workers[worker.answers] = worker
                worker.give(trial)
            if not workers:
                return
            ready, _, _ = select.select(list(workers), [], [], 0.05)
            for descriptor in list(workers):
                worker = workers[descriptor]
                result = worker.answer(limits.seconds) if descriptor in ready else None
                if result is None and time.monotonic() - worker.since > limits.seconds:
                    result = {"outcome": HANG, "text": f"no answer for {limits.seconds:g} s"}
                if result is None:
                    continue
                yield worker.trial, result
                following = None if fresh else next(queue, None)
                if result["outcome"] in (HANG, DIED) or following is None:
                    worker.end()
                    del workers[descriptor]
                    if following is not None:
                        worker = _Worker(function, limits.memory, folder)
                        workers[worker.answers] = worker
                if following is not None:
                    worker.give(following)
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    """A child that reads trials from one pipe and writes results to another."""

    def __init__(self, function: Callable[[Trial], dict], memory: int | None, folder: Path):
        trials, self._trials = os.pipe()
        self.answers, answers = os.pipe()
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        self._text = b""
        self.trial: Trial | None = None

        def work() -> None:
            os.close(self._trials)
            os.close(self.answers)
            if memory is not None:
                limit = _address_space() + memory
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with os.fdopen(trials) as given, os.fdopen(answers, "w") as answered:
                for line in given:
                    result = function(Trial(*json.loads(line)))
                    answered.write(json.dumps(result) + "\n")
                    answered.flush()
            os._exit(0)

        self.child = fork(work, self.log)
        os.close(trials)
        os.close(answers)

    def give(self, trial: Trial) -> None:
        self.trial, self.since = trial, time.monotonic()
        try:
            os.write(self._trials, (json.dumps(trial) + "\n").encode())
        except BrokenPipeError:
            pass  # the worker died; the end of its answers says so

    def answer(self, seconds: float) -> dict | None:
        """Return the result of the trial; None if it is not complete."""
        more = os.read(self.answers, 1 << 16)
        self._text += more
        if not more:
            status = wait(self.child, seconds)
            if status == -signal.SIGXCPU:
                return {"outcome": HANG, "text": "computed until its limit of CPU seconds"}
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            return {"outcome": DIED, "text": f"status {status}: {' '.join(last)[:300]}"}
        if b"\n" not in self._text:
            return None
        line, self._text = self._text.split(b"\n", 1)
        return json.loads(line)

    def end(self) -> None:
        kill(self.child)
        try:
            os.waitpid(self.child, 0)
        except ChildProcessError:
            pass
        os.close(self._trials)
        os.close(self.answers)
        self.log.unlink(missing_ok=True)


def _address_space() -> int:
    """Return the bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
