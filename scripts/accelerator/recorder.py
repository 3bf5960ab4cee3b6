"""Record of one part: rows, facts and notes, written to its file immediately."""

import concurrent.futures
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from regionclip_jax.files import replace_text


class Recorder:
    """Recorder that writes every result to ``path`` at once, so interrupted parts keep results.

    Args:
        path: the JSON file.
        seconds: time limit of the part.
        small: use sizes for a test on two CPU cores.
    """

    def __init__(self, path: Path, seconds: float, small: bool):
        self.small = small
        self._path = path
        self._began = time.monotonic()
        self._seconds = seconds
        self._record: dict[str, Any] = {"facts": {}, "rows": [], "notes": [], "not_run": []}
        self._write()

    @property
    def folder(self) -> Path:
        return self._path.parent

    @property
    def seconds_left(self) -> float:
        return self._seconds - (time.monotonic() - self._began)

    def has_time(self, name: str, seconds: float = 0.0) -> bool:
        """Return True if ``seconds`` are left; otherwise list ``name`` as not run."""
        if self.seconds_left > seconds:
            return True
        self._record["not_run"].append(name)
        print(f"not run, {self.seconds_left:.0f} s left: {name}", flush=True)
        self._write()
        return False

    def add(self, row: dict) -> None:
        self._record["rows"].append(row)
        self._write()

    def fact(self, name: str, value: Any) -> None:
        self._record["facts"][name] = value
        print(f"{name}: {value}", flush=True)
        self._write()

    def note(self, text: str) -> None:
        self._record["notes"].append(text)
        print(text, flush=True)
        self._write()

    def _write(self) -> None:
        record = self._record | {"seconds": time.monotonic() - self._began}
        replace_text(self._path, json.dumps(record, indent=1) + "\n")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if JAX, its compiler or PyTorch ran out of the device's memory."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def compile_together(compilations: Iterable[Callable[[], None]]) -> list[BaseException | None]:
    """Compile in threads; with many cores this takes little longer than the longest compilation.

    Returns:
        The error of each compilation, or None.
    """
    workers = max(1, min(6, (os.cpu_count() or 1) // 2))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(compilation) for compilation in compilations]
        return [future.exception() for future in futures]
