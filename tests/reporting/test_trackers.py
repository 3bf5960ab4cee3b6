"""Runs of Weights & Biases and MLflow, written without a server and read again."""

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.extras import MissingExtra
from regionclip_jax.reporting import trackers, writers
from regionclip_jax.reporting.trackers import TrackerError, TrackerWriter

SETTINGS = {"job": "pretrain", "run": {"num_steps": 40, "seed": 0}, "data": {"sides": [3, 4]}}


class Recorded:
    """A tracker that keeps what it is sent, and fails at some steps."""

    run_id = "a"

    def __init__(self, *, bad_steps: tuple[int, ...] = (), answers: threading.Event | None = None):
        self.sent, self.bad_steps, self.answers = [], bad_steps, answers

    def write_scalars(self, step, scalars) -> None:
        if self.answers:
            self.answers.wait()
        if step in self.bad_steps:
            raise ConnectionError(f"no answer at {step}")
        self.sent.append((step, scalars))

    def write_images(self, step, images) -> None:
        self.sent.append((step, {name: image.shape for name, image in images.items()}))

    def finish(self, *, succeeded) -> None:
        self.sent.append(succeeded)


def test_writes_are_sent_in_order_and_the_end_says_whether_the_run_failed() -> None:
    tracker = Recorded()
    writer = TrackerWriter("recorded", tracker)
    writer.write_scalars(1, {"loss": np.float32(0.5)})
    writer.write_images(1, {"pair": np.ones((2, 4, 5, 3), np.float32)})
    writer.close()
    shapes = {"pair/0": (4, 5, 3), "pair/1": (4, 5, 3)}
    assert tracker.sent == [(1, {"loss": 0.5}), (1, shapes), True]

    failed = Recorded()
    with pytest.raises(RuntimeError, match="step"):
        try:
            raise RuntimeError("of a step")
        finally:
            TrackerWriter("recorded", failed).close()
    assert failed.sent == [False]


def test_an_error_of_a_tracker_is_logged_once_and_later_points_are_sent(caplog) -> None:
    tracker = Recorded(bad_steps=(2, 3))
    writer = TrackerWriter("recorded", tracker)
    with caplog.at_level(logging.ERROR):
        for step in range(1, 5):
            writer.write_scalars(step, {"loss": 1.0})
        writer.close()
    assert tracker.sent == [(1, {"loss": 1.0}), (4, {"loss": 1.0}), True]
    (record,) = caplog.records
    assert "tracker recorded: ConnectionError: no answer at 2" in record.getMessage()


def test_a_tracker_that_does_not_answer_keeps_no_run_and_no_memory(caplog, monkeypatch) -> None:
    monkeypatch.setattr(trackers, "_MOST_WAITING", 5)
    answers = threading.Event()
    tracker = Recorded(answers=answers)
    writer = TrackerWriter("recorded", tracker, seconds_to_close=0.1)
    with caplog.at_level(logging.ERROR):
        for step in range(20):
            writer.write_scalars(step, {"loss": 1.0})
        writer.flush()
        writer.close()
    (record,) = caplog.records
    assert "5 writes wait for the network" in record.getMessage()
    answers.set()


def test_a_missing_package_and_a_damaged_id_are_refused_before_the_training(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # Python's mark of a module without a file
    with pytest.raises(MissingExtra, match=r'tracker=wandb .*pip install -e "\.\[wandb\]"'):
        writers.make_writer(tmp_path, just_logging=False, tracker="wandb")
    assert list(tmp_path.iterdir()) == []
    for content in ('{"mlflow": 3}', "[", "[]"):
        (tmp_path / "tracker.json").write_text(content)
        with pytest.raises(TrackerError, match=r"tracker\.json.*: remove the file|; remove"):
            trackers._read_ids(tmp_path / "tracker.json")


def wandb_records(folder: Path) -> list:
    """Return the records of an offline run: LevelDB's log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    content, position, records, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:  # the padding at the end of a block
            position += 2**15 - position % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def wandb_history(folder: Path) -> list[dict]:
    """Return the values of each point by their keys, joined with dots."""
    histories = [
        record.history.item
        for record in wandb_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        for items in histories
    ]


WRITE = """
import sys
import numpy as np
from regionclip_jax.reporting import writers
name, workdir, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
writer = writers.make_writer(workdir, just_logging=False, first_step=first, tracker=name)
for step in range(first, first + 2):
    writer.write_scalars(step, {"loss": 1 / step, "student (1)/AP50": np.float32(step)})
writer.write_images(first, {"labels": np.full((2, 5, 7, 3), first, np.uint8)})
writer.write_texts(first, {"config": "text"})
writer.flush()
writer.close()
"""


def write(name: str, workdir: Path, first: int, **environment: str) -> subprocess.CompletedProcess:
    workdir.mkdir(exist_ok=True)
    (workdir / "settings.json").write_text(json.dumps(SETTINGS))
    return subprocess.run(
        [sys.executable, "-c", WRITE, name, str(workdir), str(first)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


def written(name: str, workdir: Path, **environment: str) -> str:
    """Write a run and continue it; return the id that both have."""
    ids = []
    for first in (1, 3):
        done = write(name, workdir, first, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        ids.append(json.loads((workdir / "tracker.json").read_text()))
    assert ids[0] == ids[1] and list(ids[0]) == [name]
    assert list(workdir.glob("events.*"))
    return ids[0][name]


@pytest.mark.slow
def test_wandb_keeps_numbers_images_and_settings_of_a_run_that_continues(tmp_path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    workdir = tmp_path / "clip"
    run_id = written("wandb", workdir, WANDB_MODE="offline")
    folders = sorted((workdir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(run_id) for folder in folders)
    for folder, first in zip(folders, (1, 3), strict=True):
        points = {row["step"]: row for row in wandb_history(folder) if "loss" in row}
        assert {s: (p["loss"], p["student (1)/AP50"]) for s, p in points.items()} == {
            step: (1 / step, step) for step in (first, first + 1)
        }
        (images,) = [row for row in wandb_history(folder) if "labels/0.path" in row]
        assert images["step"] == first and images["labels/1._type"] == "image-file"
        files = sorted((folder / "files" / "media" / "images").rglob("*.png"))
        assert [np.asarray(Image.open(file)).tolist() for file in files] == [
            np.full((5, 7, 3), first).tolist()
        ] * 2
        (run,) = [r.run for r in wandb_records(folder) if r.WhichOneof("record_type") == "run"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["run"] == SETTINGS["run"] and config["data"] == SETTINGS["data"]
        assert run.run_id == run_id and run.project == "regionclip_jax"
        (last,) = [r.exit for r in wandb_records(folder) if r.WhichOneof("record_type") == "exit"]
        assert last.exit_code == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mlflow_store(folder: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": folder.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}


@pytest.mark.slow
def test_mlflow_keeps_numbers_images_and_settings_of_a_run_that_continues(
    tmp_path, monkeypatch, caplog
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow.tracking import MlflowClient

    workdir, store = tmp_path / "clip", mlflow_store(tmp_path / "store")
    run_id = written("mlflow", workdir, **store)
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient()
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"{tmp_path.name}/clip")
    assert client.get_experiment(run.info.experiment_id).name == "regionclip_jax"
    assert run.data.params == {
        "job": "pretrain", "run.num_steps": "40", "run.seed": "0", "data.sides": "[3, 4]",
    }  # fmt: skip
    for name, value in (("loss", lambda step: 1 / step), ("student _1_/AP50", float)):
        history = client.get_metric_history(run_id, name)
        assert [(m.step, m.value) for m in history] == [(s, value(s)) for s in range(1, 5)]
    files = [file.path for file in client.list_artifacts(run_id, "images")]
    for first in (1, 3):
        for number in (0, 1):
            (path,) = [
                file
                for file in files
                if file.startswith(f"images/labels~{number}+step+{first}+") and "png" in file
            ]
            image = Image.open(client.download_artifacts(run_id, path))
            assert np.asarray(image).tolist() == np.full((5, 7, 3), first).tolist()

    # A run that continues with other settings, and a store that is lost in the middle.
    settings = SETTINGS | {"job": "other"}
    (workdir / "settings.json").write_text(json.dumps(settings))
    writer = trackers.start_tracker("mlflow", workdir)
    with caplog.at_level(logging.ERROR):
        for step in (5, 6, 7):
            writer.write_scalars(step, {"loss": 1.0})
            if step == 5:
                wait_for(lambda: client.get_metric_history(run_id, "loss")[-1].step == 5)
                (tmp_path / "store").rename(tmp_path / "elsewhere")
        writer.close()
    lines = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
    assert len(lines) == 1 and "does not exist" in lines[0]
    shutil.rmtree(tmp_path / "store", ignore_errors=True)  # a part that MLflow made again
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert client.get_run(run_id).data.params["job"] == "pretrain"
    path = client.download_artifacts(run_id, "settings.json")
    assert json.loads(Path(path).read_text()) == settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "environment", "remedy"),
    [
        (
            "wandb",
            {"WANDB_MODE": "online", "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "run `wandb login`, or set WANDB_MODE=offline",
        ),
        (
            "mlflow",
            {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
            "set MLFLOW_TRACKING_URI to a server that answers",
        ),
    ],
)
def test_a_tracker_that_cannot_start_is_refused_with_the_remedy(
    tmp_path, name, environment, remedy
) -> None:
    pytest.importorskip(name, reason=f"needs the extra {name}")
    done = write(name, tmp_path / "clip", 1, HOME=str(tmp_path), **environment)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "TrackerError: tracker: " in last, done.stderr[-3000:]
    assert f"{name} did not start" in last and remedy in last
    assert sorted(path.name for path in (tmp_path / "clip").glob("*.json")) == ["settings.json"]
    assert not list((tmp_path / "clip").glob("events.*"))
