"""Write to TensorBoard and the log through CLU's writer interface, without TensorFlow.

``clu.metric_writers`` imports TensorFlow for one of its classes, the writer of event files. If
TensorFlow is not installed, this module registers its own writer (over tensorboardX) under the
name of the imported module. If TensorFlow is installed, CLU is not changed.
"""

import contextlib
import importlib.util
import itertools
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorboardX
from tensorboardX.summary import hparams as hparams_summary

_MODULE = "clu.metric_writers.summary_writer"
_opened = itertools.count()


def make_writer(workdir: str | Path | None, *, just_logging: bool):
    """Return a ``clu.metric_writers.MetricWriter`` for log and TensorBoard, in the background.

    Args:
        workdir: directory of the event files; None for the log alone.
        just_logging: write no event files (processes other than the first).
    """
    install_summary_writer_bridge()
    from clu import metric_writers  # only now: its import needs the bridge

    logdir = None if workdir is None else str(workdir)
    return metric_writers.create_default_writer(logdir, just_logging=just_logging)


def write_evaluation(
    workdir: str | Path,
    metrics: Mapping[str, Mapping[str, float | None]],
    steps: Mapping[str, int],
    images: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the metrics of models to TensorBoard, each at the step that its weights belong to.

    Args:
        workdir: directory of the event files.
        metrics: model -> metric -> value; None is left out.
        steps: updates of each model's training.
        images: written at the last of the steps.
    """
    with contextlib.closing(make_writer(workdir, just_logging=False)) as writer:
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

    It is a virtual subclass of the interface, because the interface's import needs this class.

    Args:
        log_dir: directory of the event file, created if missing.
    """

    def __init__(self, log_dir: str | Path):
        # tensorboardX names files by the second and truncates an existing one.
        unique = f".{os.getpid()}.{next(_opened)}"
        self._writer = tensorboardX.SummaryWriter(logdir=str(log_dir), filename_suffix=unique)

    def write_scalars(self, step: int, scalars: Mapping[str, object]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(np.asarray(value)), step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write images [H, W, C] or [N, H, W, C], C = 1 or 3: uint8, or floats in [0, 1].

        Raises:
            ValueError: another shape.
        """
        for name, value in images.items():
            pixels = np.asarray(value)
            if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
                raise ValueError(
                    f"image {name!r}: expected [H, W, C] or [N, H, W, C] with C = 1 or 3, found "
                    f"shape {pixels.shape}"
                )
            if np.issubdtype(pixels.dtype, np.floating):
                pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 255)
            pixels = pixels.astype(np.uint8)
            if pixels.ndim == 3:
                self._writer.add_image(name, pixels, step, dataformats="HWC")
                continue
            for i, image in enumerate(pixels):
                self._writer.add_image(f"{name}/{i}", image, step, dataformats="HWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        for name, values in arrays.items():
            buckets = (num_buckets or {}).get(name)
            self._writer.add_histogram(
                name, np.asarray(values, np.float64).ravel(), step, bins=buckets or "auto"
            )

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """Write hyperparameters; values other than numbers, bools and strings as text."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in hparams.items()
        }
        # tensorboardX's add_hparams would create a second run in a sub-directory named by the time.
        for summary in hparams_summary(plain, {}):
            self._writer.file_writer.add_summary(summary)

    def write_summaries(self, step: int, values: Mapping, metadata: Mapping | None = None) -> None:
        raise NotImplementedError("raw summaries need TensorFlow's writer: pip install tensorflow")

    def write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError("videos are not written here; write frames with write_images")

    def write_audios(
        self, step: int, audios: Mapping[str, np.ndarray], *, sample_rate: int
    ) -> None:
        raise NotImplementedError("audio needs TensorFlow's writer: pip install tensorflow")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
