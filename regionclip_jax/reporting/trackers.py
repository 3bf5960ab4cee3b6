"""Send the metrics, images and settings of a run to Weights & Biases or MLflow.

The tracker's own environment variables choose the server, the account and the project. A run that
continues in its workdir continues the run of the tracker, whose id is in ``tracker.json``.
"""

import json
import os
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from regionclip_jax.extras import require_extra
from regionclip_jax.files import replace_text
from regionclip_jax.reporting.pixels import separate_images
from regionclip_jax.settings import UserError
from regionclip_jax.untrusted import read_large_json, reason

_IDS = "tracker.json"
_PROJECT = "regionclip_jax"
# Writes that wait for the network. Further ones are dropped, so that memory stays bounded.
_MOST_WAITING = 1000
_SECONDS_TO_FINISH = 100
# MLflow's limits of a request, and of the text of a parameter.
_PARAMETERS_PER_REQUEST = 100
_LONGEST_PARAMETER = 6000


class TrackerError(UserError):
    """A tracker cannot start: the message has its own words and the remedy."""


class Tracker(Protocol):
    """A run of a tracking service; every method may raise any exception."""

    run_id: str

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send numbers of a step; steps need not ascend."""

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W C"]]) -> None:
        """Send images of a step."""

    def finish(self, *, succeeded: bool) -> None:
        """Send the rest, and state that the run ended, with or without an error."""


def check_tracker(name: str | None) -> None:
    """Import the packages of a tracker, if there is one.

    Raises:
        MissingExtra: a package cannot be imported; the message has the command that installs it.
    """
    if name is not None:
        require_extra(name, f"tracker={name}")


def start_tracker(name: str, workdir: str | Path) -> "TrackerWriter":
    """Begin the run of a tracker, or continue the one of ``workdir``.

    Args:
        name: a key of ``TRACKERS``.
        workdir: folder with ``settings.json``, the settings that the tracker shows.

    Raises:
        MissingExtra: as ``check_tracker``.
        TrackerError: the tracker refused, or cannot be reached.
    """
    check_tracker(name)
    path = Path(workdir) / _IDS
    ids = _read_ids(path)
    settings = read_large_json(Path(workdir) / "settings.json", "start the run again")
    try:
        tracker = TRACKERS[name](Path(workdir), settings, ids.get(name))
    except Exception as error:
        kept = f", or remove {path} to begin a new run there" if name in ids else ""
        raise TrackerError(
            f"tracker: {name} did not start ({reason(error)}); {_REMEDIES[name]}{kept}, or leave "
            "out --config.tracker"
        ) from error
    replace_text(path, json.dumps(ids | {name: tracker.run_id}) + "\n")
    return TrackerWriter(name, tracker)


def _read_ids(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    remedy = "remove the file to begin new runs of the trackers"
    try:
        ids = read_large_json(path, remedy)
    except ValueError as error:
        raise TrackerError(str(error)) from error
    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        raise TrackerError(f"{path}: expected an object of tracker names and run ids; {remedy}")
    return ids


class TrackerWriter:
    """Part of CLU's MetricWriter interface over a tracker; a thread sends in the order of writing.

    An error of the tracker is logged once. Later writes are still sent.

    Args:
        name: names the tracker in the log.
        tracker: used by the thread alone.
        seconds_to_close: ``close`` waits at most so long for the thread.
    """

    def __init__(self, name: str, tracker: Tracker, seconds_to_close: float = 120.0):
        self._name, self._tracker, self._seconds_to_close = name, tracker, seconds_to_close
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._has_failed = False
        # A daemon: a server that does not answer must not keep the process.
        self._thread = threading.Thread(target=self._send_all, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        numbers = {name: float(np.asarray(value)) for name, value in scalars.items()}
        self._send(lambda: self._tracker.write_scalars(step, numbers))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write images as ``pixels.separate_images`` takes them."""
        separate = separate_images(images)
        self._send(lambda: self._tracker.write_images(step, separate))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Send nothing: texts repeat the settings, or are for readers of TensorBoard."""

    def flush(self) -> None:
        """Do not wait: a checkpoint must not depend on the network."""

    def close(self) -> None:
        """Send the rest and finish the run; within an exception's handling, as one that failed."""
        succeeded = sys.exc_info()[0] is None
        deadline = time.monotonic() + self._seconds_to_close
        try:
            for last in (lambda: self._tracker.finish(succeeded=succeeded), None):
                self._calls.put(last, timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Full:
            pass
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._report("the last writes were not sent in time")

    def _send(self, call: Callable[[], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._report(f"{_MOST_WAITING} writes wait for the network; further ones are dropped")

    def _send_all(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                self._report(reason(error))

    def _report(self, problem: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            logging.error(
                "tracker %s: %s. The run continues and sends later points; TensorBoard has all of "
                "them",
                self._name,
                problem.rstrip("."),
            )


class _WandbRun:
    def __init__(self, workdir: Path, settings: Mapping[str, object], run_id: str | None):
        import wandb

        self._image = wandb.Image
        self.run_id = run_id or uuid.uuid4().hex
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            # The name of a run that continues may have been changed in the browser.
            name=None if run_id else os.environ.get("WANDB_NAME", _title(workdir)),
            id=self.run_id,
            resume="allow",
            dir=workdir,
            config=dict(settings),
            allow_val_change=True,
            # The log stays what it is, and the end of a run does not wait for a lost network.
            settings=wandb.Settings(console="off", finish_timeout=_SECONDS_TO_FINISH),
        )
        # W&B's own steps must ascend. Images come later than the numbers of their step.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "step": step})

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W C"]]) -> None:
        content = {name: self._image(_pillow(pixels)) for name, pixels in images.items()}
        self._run.log({**content, "step": step})

    def finish(self, *, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


class _MlflowRun:
    def __init__(self, workdir: Path, settings: Mapping[str, object], run_id: str | None):
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        if run_id is None:
            run = self._client.create_run(self._experiment(), run_name=_title(workdir))
            self.run_id = run.info.run_id
            # MLflow lets nobody change a parameter, so these are the settings of the first start.
            parameters = [
                Param(_allowed(name), text[:_LONGEST_PARAMETER]) for name, text in _flat(settings)
            ]
            for first in range(0, len(parameters), _PARAMETERS_PER_REQUEST):
                some = parameters[first : first + _PARAMETERS_PER_REQUEST]
                self._client.log_batch(self.run_id, params=some)
        else:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        self._client.log_dict(self.run_id, dict(settings), "settings.json")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)  # milliseconds
        metrics = [self._metric(_allowed(name), x, now, step) for name, x in scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W C"]]) -> None:
        for name, pixels in images.items():
            self._client.log_image(self.run_id, _pillow(pixels), key=_allowed(name), step=step)

    def finish(self, *, succeeded: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")


TRACKERS: dict[str, Callable[[Path, Mapping[str, object], str | None], Tracker]] = {
    "wandb": _WandbRun,
    "mlflow": _MlflowRun,
}
_REMEDIES = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to a server that answers",
}


def _pillow(pixels: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """Return an image as both trackers take it.

    They import Pillow late. In a thread that fails while tensorboardX imports it in another one.
    """
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _title(workdir: Path) -> str:
    """Return the last two folders: several runs of one experiment have the same last one."""
    return "/".join(workdir.absolute().parts[-2:])


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _allowed(name: str) -> str:
    """Replace the characters that MLflow refuses in names."""
    return re.sub(r"[^a-zA-Z0-9_./ -]", "_", name)
