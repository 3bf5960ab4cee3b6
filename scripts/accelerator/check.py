"""Prove and measure the package on the accelerator of this machine.

Parts run one after the other, most valuable first, each in its own process with its own time limit.
Each writes DIR/PART.json and DIR/PART.log, and updates DIR/report.md at its end, so an interrupted
check keeps its results. Exit status: 0 if no part failed, 1 if one did, 2 for wrong arguments or an
interpreter without JAX.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from accelerator.parts import BASE, PARTS, TORCH, Part, missing
from accelerator.report import Ended, markdown
from regionclip_jax.files import replace_text

_ROOT = Path(__file__).parents[2]
# Backends reported by JAX -> their names in JAX_PLATFORMS.
_PLATFORMS = {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}
_DEFAULT_BUDGET = 420.0


def main() -> None:
    args = _parse()
    absent = missing(BASE)
    if absent:
        names = " ".join({"orbax": "orbax-checkpoint"}.get(name, name) for name in absent)
        print(
            f"check_accelerator: {sys.executable} cannot import {', '.join(absent)}; "
            f"pip install {names}, or set PYTHON=/path/to/python",
            file=sys.stderr,
        )
        sys.exit(2)
    args.output.mkdir(parents=True, exist_ok=True)
    sys.exit(Check(args).run())


def _parse() -> argparse.Namespace:
    width = max(len(part.name) for part in PARTS)
    listed = "\n".join(f"  {part.name:{width}s}  {part.meaning}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="scripts/check_accelerator.sh",
        description=__doc__,
        epilog=f"parts, in their order:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--budget", type=float, default=_DEFAULT_BUDGET, metavar="SECONDS",
        help="time of all parts together (default 420)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("accelerator_check"), metavar="DIR",
        help="folder of the report (default accelerator_check)",
    )  # fmt: skip
    parser.add_argument("--parts", help="comma-separated names (default: all)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the check itself")
    args = parser.parse_args()
    names = [part.name for part in PARTS]
    wanted = names if args.parts is None else [name.strip() for name in args.parts.split(",")]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        parser.error(f"--parts: {', '.join(unknown) or 'none named'}; expected {', '.join(names)}")
    if not args.budget > 0:
        parser.error(f"--budget: {args.budget:g}; expected seconds above 0")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output: {args.output} is a file; expected a folder")
    args.parts = [part for part in PARTS if part.name in wanted]
    return args


class Check:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace):
        self._args = args
        self._output = args.output.absolute()
        self._began = time.monotonic()
        self._ended: list[Ended] = []
        self._environment = dict(os.environ)
        # By default JAX allocates most of a GPU's memory, and PyTorch needs some of it.
        self._environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self._environment.setdefault("PYTHONUNBUFFERED", "1")
        # Parts share some compiled programs, and a second check uses all of them again.
        cache = str(self._output / "compiled")
        self._environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        # Frequent warnings during compilation would hide important ones.
        self._environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def run(self) -> int:
        parts = self._args.parts
        if PARTS[0] not in parts:
            # All other numbers are meaningless without the device's name.
            parts = [PARTS[0], *parts]
        absent = missing(TORCH)
        if absent:
            print(f"no comparison with PyTorch: {' and '.join(absent)} cannot be imported")
        for number, part in enumerate(parts):
            ended = self._run_part(part, parts[number:])
            self._ended.append(ended)
            self._write_report()
            print(f"{part.name}: {ended.status}, {ended.seconds:.0f} s{ended.said}", flush=True)
            if part.name == "facts":
                if not ended.status.startswith("done"):
                    print("the device could not be described; nothing else is run", flush=True)
                    break
                self._use_device(ended.record)
        print(f"report: {self._args.output / 'report.md'}")
        return int(any(ended.status == "failed" for ended in self._ended))

    def _use_device(self, record: dict) -> None:
        """Restrict the other parts to the device of the first one."""
        facts = record["facts"]
        backend = facts["backend"]
        # A device that fails later is then an error; otherwise JAX would use the CPU.
        self._environment["JAX_PLATFORMS"] = _PLATFORMS.get(backend, backend)
        if backend == "cpu":
            print("no accelerator, measuring the CPU", flush=True)
            if facts.get("nvidia_smi"):
                print(
                    "nvidia-smi answers, but JAX sees no GPU: install jax with its CUDA plugin "
                    '(pip install "jax[cuda12]")',
                    flush=True,
                )
        else:
            print(f"measuring {facts['device']}", flush=True)

    def _run_part(self, part: Part, ahead: list[Part]) -> Ended:
        needs, _ = part.missing()
        if needs:
            return Ended(part, "skipped", 0.0, {}, f"cannot import {', '.join(needs)}")
        left = self._args.budget - (time.monotonic() - self._began)
        seconds = left * part.seconds / sum(other.seconds for other in ahead)
        if seconds < part.least:
            # A small share of the remaining time would start none of the last parts.
            seconds = min(left, part.least)
        if left < part.least:
            why = f"{max(left, 0):.0f} s of the budget are left, {part.least:g} are needed"
            return Ended(part, "not run", 0.0, {}, why)
        path = self._output / f"{part.name}.json"
        path.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "accelerator.run_part", part.name,
            f"--output={self._output}", f"--seconds={seconds - min(3, seconds / 5)}",
        ]  # fmt: skip
        if self._args.small:
            command.append("--small")
        print(f"{part.name}: {part.meaning}, at most {seconds:.0f} s", flush=True)
        began = time.monotonic()
        status, why = self._wait(command, self._output / f"{part.name}.log", seconds)
        record = json.loads(path.read_text()) if path.exists() else {}
        if status == "done" and record.get("not_run"):
            status, why = "done in part", f"no time for {len(record['not_run'])} of its rows"
        record |= {"part": part.name, "status": status, "why": why}
        replace_text(path, json.dumps(record, indent=1) + "\n")
        return Ended(part, status, time.monotonic() - began, record, why)

    def _wait(self, command: list[str], log: Path, seconds: float) -> tuple[str, str]:
        """Return the status of a part's process, and the reason if it is not "done"."""
        with log.open("w") as said:
            process = subprocess.Popen(
                command, cwd=_ROOT, env=self._environment, stdout=said, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                return "cut off", f"its {seconds:.0f} s were over"
            finally:
                # Including its children, such as a training run.
                _kill_group(process)
        if code == 0:
            return "done", ""
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "failed", f"exit status {code}: " + "\n".join(last[-8:])

    def _write_report(self) -> None:
        text = markdown(
            self._ended, budget=self._args.budget, small=self._args.small, parts=self._args.parts
        )
        replace_text(self._output / "report.md", text)


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


if __name__ == "__main__":
    # sys.exit kills the running part's process; SIGTERM alone would not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
