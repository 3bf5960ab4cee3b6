import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regionclip_jax.reporting import writers


def read(directory):
    events = EventAccumulator(str(directory), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_reads_the_written_values(tmp_path):
    draws = np.random.default_rng(0)
    image = draws.integers(0, 256, (5, 7, 3), np.uint8)
    writer = writers.make_writer(tmp_path, just_logging=False)
    writer.write_hparams({"learning_rate": 0.002, "steps": (3, 4), "name": "tiny"})
    writer.write_scalars(3, {"loss": np.float32(0.5), "top1": 1})
    writer.write_scalars(4, {"loss": 0.25})
    writer.write_images(3, {"gallery": image, "pair": np.ones((2, 4, 4, 1), np.float32)})
    writer.write_texts(0, {"settings": "batch: 8"})
    writer.write_histograms(3, {"weights": draws.normal(size=100)}, num_buckets={"weights": 5})
    writer.flush()
    writer.close()

    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5), (4, 0.25)]
    assert events.Scalars("top1")[0].value == 1
    assert set(events.Tags()["images"]) == {"gallery", "pair/0", "pair/1"}
    image = events.Images("gallery")[0]
    assert (image.height, image.width, image.step) == (5, 7, 3)
    assert image.encoded_image_string.startswith(b"\x89PNG")
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("settings")]
    assert events.Tensors(tags[0])[0].tensor_proto.string_val == [b"batch: 8"]
    assert events.Histograms("weights")[0].histogram_value.num == 100
    assert list(tmp_path.iterdir()) != []
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # hparams add no second run


def test_writers_opened_in_the_same_second_write_separate_files(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    for step in range(3):
        writer = writers.EventFileWriter(tmp_path)
        writer.write_scalars(step, {"loss": 0.5 * step})
        writer.close()
    kept = [
        (event.step, event.value)
        for file in tmp_path.iterdir()
        for event in read(file).Scalars("loss")
    ]
    assert sorted(kept) == [(0, 0.0), (1, 0.5), (2, 1.0)]


KILLED = """
import os, signal, sys
import numpy as np
from regionclip_jax.reporting import writers
for folder, first_step in (("new", 0), ("old", None)):
    path = f"{sys.argv[1]}/{folder}"
    writer = writers.make_writer(path, just_logging=False, first_step=first_step)
    writer.write_texts(0, {"settings": "batch: 8"})
    for step in range(1, 41):
        writer.write_scalars(step, {f"loss{i}": step / 2 for i in range(9)})
        writer.write_images(step, {"image": np.zeros((9, 9, 3), np.uint8)})
    writer.flush()  # with the checkpoint of step 40
    for step in range(41, 100):
        writer.write_scalars(step, {f"loss{i}": -1.0 for i in range(9)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_and_resumed_run_has_every_step_once(tmp_path):
    """Flushed points survive SIGKILL, and those after the restored step are replaced.

    The files of versions up to 0.2.0 do not say where their run begins.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=100,
    )
    assert done.returncode == -signal.SIGKILL
    for folder in (tmp_path / "new", tmp_path / "old"):
        left = [event.step for event in read(folder).Scalars("loss8")]
        assert left[:40] == list(range(1, 41)) and len(left) > 40
        for _ in range(2):  # resumed twice from the same checkpoint
            writer = writers.make_writer(folder, just_logging=False, first_step=41)
            for step in range(41, 61):
                writer.write_scalars(step, {"loss8": step / 2})
            writer.close()

        events = read(folder)
        assert [(e.step, e.value) for e in events.Scalars("loss8")] == [
            (step, step / 2) for step in range(1, 61)
        ]
        assert [e.step for e in events.Images("image")] == list(range(1, 41))
        assert len(events.Tensors("settings/text_summary")) == 1
        # The loader of TensorBoard's own pages.
        shown = plugin_event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
        shown.Reload()
        assert [e.step for e in shown.Tensors("loss8")] == list(range(1, 61))
        assert [e.step for e in shown.Tensors("loss0")] == list(range(1, 41))


def test_event_files_sort_in_the_order_of_opening(tmp_path, monkeypatch):
    """Also if the clock went back, as that of another host."""
    opened = []
    for now in (1_700_000_000.0, 1_700_000_000.5, 1_600_000_000.0, 1_700_000_000.0):
        monkeypatch.setattr("time.time", lambda now=now: now)
        writers.EventFileWriter(tmp_path).close()
        (new,) = set(tmp_path.iterdir()) - set(opened)
        opened.append(new)
    assert opened == sorted(opened)


def test_the_writer_is_a_clu_metric_writer(tmp_path):
    writers.install_summary_writer_bridge()
    from clu import metric_writers

    assert isinstance(writers.EventFileWriter(tmp_path), metric_writers.MetricWriter)
    assert isinstance(writers.make_writer(None, just_logging=True), metric_writers.MetricWriter)


def test_logging_alone_writes_no_event_file(tmp_path):
    writer = writers.make_writer(tmp_path, just_logging=True)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_a_wrong_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'mask'.*\(4, 4, 2\)"):
        writers.EventFileWriter(tmp_path).write_images(0, {"mask": np.zeros((4, 4, 2))})


def test_clu_keeps_its_writer_if_tensorflow_is_installed(tmp_path):
    """Check with a mock `tensorflow` on the path that the adapter does not change CLU."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("")
    script = textwrap.dedent("""
        import sys
        from regionclip_jax.reporting import writers
        writers.install_summary_writer_bridge()
        assert writers._MODULE not in sys.modules
    """)
    paths = [str(tmp_path), *filter(None, sys.path)]
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
