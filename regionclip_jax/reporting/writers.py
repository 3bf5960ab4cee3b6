"""Write to TensorBoard, the log and a tracker through CLU's interface, without TensorFlow.

``clu.metric_writers`` imports TensorFlow for one of its classes, the writer of event files. If
TensorFlow is not installed, this module registers its own writer (over tensorboardX) under the
name of the imported module. If TensorFlow is installed, CLU is not changed. Runs use the writer of
this module in both cases.
"""

import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging
from tensorboardX import RecordWriter, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

from regionclip_jax.reporting.pixels import separate_images
from regionclip_jax.reporting.trackers import TrackerError, start_tracker

_MODULE = "clu.metric_writers.summary_writer"


def make_writer(
    workdir: str | Path | None,
    *,
    just_logging: bool,
    first_step: int | None = None,
    tracker: str | None = None,
):
    """Return a ``clu.metric_writers.MetricWriter`` for log, TensorBoard and tracker.

    It writes to the buffer of a file at once, from any thread; ``flush`` waits for the disk.

    Args:
        workdir: directory of the event files; None for the log alone.
        just_logging: write no event files and to no tracker (processes other than the first).
        first_step: see ``EventFileWriter``.
        tracker: as ``trackers.start_tracker``; None for no tracker.

    Raises:
        MissingExtra, TrackerError: as ``trackers.start_tracker``.
    """
    install_summary_writer_bridge()
    from clu import metric_writers  # only now: its import needs the bridge

    writers = [metric_writers.LoggingWriter()]
    if workdir is not None and not just_logging:
        # The tracker first: if it does not start, there is no new event file.
        if tracker is not None:
            writers.append(start_tracker(tracker, workdir))
        writers.append(EventFileWriter(workdir, first_step))
    return metric_writers.MultiWriter(writers)


def write_evaluation(
    workdir: str | Path,
    metrics: Mapping[str, Mapping[str, float | None]],
    steps: Mapping[str, int],
    images: Mapping[str, np.ndarray] | None = None,
    *,
    tracker: str | None,
) -> None:
    """Write the metrics of models to TensorBoard, each at the step that its weights belong to.

    A tracker that does not start is an error in the log: the metrics are computed already.

    Args:
        workdir: directory of the event files.
        metrics: model -> metric -> value; None is left out.
        steps: updates of each model's training.
        images: written at the last of the steps.
        tracker: as in ``make_writer``.
    """
    try:
        writer = make_writer(workdir, just_logging=False, tracker=tracker)
    except TrackerError as error:
        logging.error("%s", error)
        writer = make_writer(workdir, just_logging=False)
    with contextlib.closing(writer):
        for name, values in metrics.items():
            known = {f"{name}/{key}": value for key, value in values.items() if value is not None}
            writer.write_scalars(steps[name], known)
        if images:
            writer.write_images(max(steps.values()), images)


def install_summary_writer_bridge() -> None:
    """Install an event file writer for CLU if TensorFlow is not installed.

    Call before the first import of ``clu.metric_writers`` or ``clu.periodic_actions``; further
    calls do nothing.
    """
    if _MODULE in sys.modules or importlib.util.find_spec("tensorflow") is not None:
        return
    module = types.ModuleType(_MODULE, "Event files through tensorboardX instead of TensorFlow.")
    module.SummaryWriter = EventFileWriter
    sys.modules[_MODULE] = module
    from clu.metric_writers import interface  # only now: its package imports the module above

    interface.MetricWriter.register(EventFileWriter)


class EventFileWriter:
    """CLU's MetricWriter interface over tensorboardX.

    It is a virtual subclass of the interface, because the interface's import needs this class. Not
    over tensorboardX's SummaryWriter: flushing that one leaves events in a queue.

    Args:
        log_dir: directory of the event file, created if missing.
        first_step: a run that begins or continues writes from this step on. TensorBoard drops
            points of this step and later ones that earlier files of the directory have.
    """

    def __init__(self, log_dir: str | Path, first_step: int | None = None):
        path = _new_event_file(Path(log_dir))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer, self._lock = RecordWriter(str(path)), threading.Lock()
        self._write(None, file_version="brain.Event:2")
        if first_step is not None:
            # TensorBoard takes the first one of a directory as its beginning, and older versions
            # of this package wrote none.
            for _ in range(2):
                self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int | None, **content) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        with self._lock:
            self._writer.write(event.SerializeToString())

    def write_scalars(self, step: int, scalars: Mapping[str, object]) -> None:
        for name, value in scalars.items():
            self._write(step, summary=summary.scalar(name, float(np.asarray(value))))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write images as ``pixels.separate_images`` takes them.

        Raises:
            ValueError: another shape.
        """
        for name, pixels in separate_images(images).items():
            self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._write(step, summary=summary.text(name, text))

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        for name, values in arrays.items():
            buckets = (num_buckets or {}).get(name) or "auto"
            numbers = np.asarray(values, np.float64).ravel()
            self._write(step, summary=summary.histogram(name, numbers, buckets))

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """Write hyperparameters; values other than numbers, bools and strings as text."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in hparams.items()
        }
        # tensorboardX's add_hparams would create a second run in a sub-directory named by the time.
        for part in summary.hparams(plain, {}):
            self._write(None, summary=part)

    def write_summaries(self, step: int, values: Mapping, metadata: Mapping | None = None) -> None:
        raise NotImplementedError("raw summaries need TensorFlow's writer: pip install tensorflow")

    def write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError("videos are not written here; write frames with write_images")

    def write_audios(
        self, step: int, audios: Mapping[str, np.ndarray], *, sample_rate: int
    ) -> None:
        raise NotImplementedError("audio needs TensorFlow's writer: pip install tensorflow")

    def flush(self) -> None:
        """Wait until the events are on the disk."""
        with self._lock:
            self._writer.flush()

    def close(self) -> None:
        self.flush()
        self._writer.close()


def _new_event_file(folder: Path) -> Path:
    """Return a path that sorts behind the event files of a folder.

    TensorBoard reads them in the order of their names, which have the second of their opening. A
    run that continues within a second, or on a host whose clock is late, would come first.
    """
    seconds = (re.search(r"\.tfevents\.(\d+)\.", path.name) for path in folder.glob("*tfevents*"))
    newest = max((int(found[1]) for found in seconds if found), default=0)
    second = max(int(time.time()), newest + 1)
    return folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
