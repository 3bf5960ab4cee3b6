"""A command over images that is stopped, meets a full disk, or gets images of one name."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.commands import detect
from regionclip_jax.commands.detection_files import DetectionFiles
from regionclip_jax.commands.image_run import ImageRun
from regionclip_jax.commands.input_images import InputImage
from regionclip_jax.data.sources.image_files import list_images, relative_names
from regionclip_jax.failures import ExitStatus
from regionclip_jax.files import locked_folder
from regionclip_jax.model import Detected

ROOT = Path(__file__).parents[2]
# The command with a detector that finds one box, and an event at the fifth image.
CODE = """
import os, signal, sys, time, types
import numpy as np
from regionclip_jax.commands import detect
from regionclip_jax.data.sources.image_files import list_images
from regionclip_jax.model import Detected
from regionclip_jax.settings import DetectionSettings

class Model:
    directory, card = "models/none", types.SimpleNamespace(source={})
    scores, seen = types.SimpleNamespace(detection=DetectionSettings()), 0
    def vocabulary(self, names):
        return types.SimpleNamespace(names=("cat",))
    def detect(self, images, classes, **_):
        self.seen += len(images)
        if self.seen == 5:
            exec(event)
        box = np.array([[0, 0, 9, 9]], np.float32)
        one = Detected(
            box, np.ones(1, np.float32), np.zeros(1, int), ("cat",), ("cat",), (30, 40)
        )
        return [one] * len(images)

def wait_for_lines(file, number):
    while open(file).read().count("\\n") < number:
        time.sleep(0.01)

def run(output, images, **more):
    options = types.SimpleNamespace(
        output=output, objectness=None, score=0.5, max_boxes=3, best_names=False, batch_size=1,
        tile=None, overlap=None, every=1, no_drawing=False,
    )
    vars(options).update(more)
    return detect.detect_all(Model(), list_images([images]), ["cat"], options)
"""
PIXELS = np.zeros((30, 40, 3), np.uint8)
SEVEN = [f"{letter}.png" for letter in "abcdefg"]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in SEVEN:
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(folder / name)
    return folder


def text_of(image: InputImage, result: str) -> str:
    return result


def detections(folder: Path) -> dict:
    """Return the facts of the dataset with its images, all of which have lines."""
    content = json.loads((folder / "detections.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    lines = [json.loads(x) for x in (folder / "detections.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines][: len(names)] == names
    return {**content["info"], "names": names, "lines": lines}


@pytest.mark.command
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_leaves_what_it_has_found(photos, tmp_path, number):
    out = tmp_path / "out"
    event = f"os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    if number == signal.SIGKILL:  # the results of the first four reach the disk meanwhile
        event = f"wait_for_lines({str(out / 'detections.jsonl')!r}, 4); {event}"
    end = f"event = {event!r}; sys.exit(run({str(out)!r}, {str(photos)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", CODE + end],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    content = detections(out)
    assert content["num_images"] == 7 and not content["complete"]
    assert sorted(path.name for path in out.glob("*.png")) == [f"{x}.png" for x in SEVEN[:4]]
    if number == signal.SIGKILL:  # the last images may wait for the next write
        assert done.returncode == -signal.SIGKILL
        assert content["names"] == SEVEN[: len(content["names"])] != []
        assert len(content["lines"]) == 4
        return
    assert content["names"] == SEVEN[:4]
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == ""
    last = done.stdout.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM: 4 images, 0 skipped, 3 missing (")
    assert "g.png)" in last and last.endswith(f", 4 detections: {out}/detections.json")


@pytest.mark.command
def test_a_signal_after_the_last_image_keeps_the_last_line(photos, tmp_path):
    """The signal comes while the last line is made."""
    out = tmp_path / "out"
    code = CODE + textwrap.dedent(f"""
        import threading
        event = ""
        class Report(detect.DetectionFiles):
            def describe(self):
                if threading.current_thread() is threading.main_thread():
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.1)  # the thread that reads signals waits for the line
                return super().describe()
        detect.DetectionFiles = Report
        sys.exit(run({str(out)!r}, {str(photos)!r}))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == ""
    finished, stopped = done.stdout.splitlines()[-2:]
    assert finished.startswith("7 images, 0 skipped, 7 detections")
    assert stopped == f"stopped by SIGTERM: {finished}"
    assert detections(out)["complete"]


def run_with(write_png: str, event: str, out: Path, photos: Path) -> subprocess.CompletedProcess:
    """Run the command with two threads that draw, and a body of ``write_png(path, image)``."""
    code = CODE + textwrap.dedent(f"""
        from regionclip_jax.commands import overlapping
        from regionclip_jax.reporting.galleries import write_png
        overlapping.NUM_WRITERS = 2
        event = {event!r}
        def slow(path, image):
            {write_png}
            write_png(path, image)
        detect.write_png = slow
        sys.exit(run({str(out)!r}, {str(photos)!r}))
    """)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.command
def test_a_signal_ends_what_is_being_drawn_and_drops_what_waits_for_it(photos, tmp_path):
    """Two images are being drawn for longer than a signal waits, and two wait for them."""
    out = tmp_path / "out"
    event = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    done = run_with("time.sleep(4)", event, out, photos)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert (
        last.startswith("stopped by SIGTERM: 2 images, 0 skipped, 5 missing (") and len(lines) == 2
    )
    content = detections(out)
    assert content["names"] == SEVEN[:2] and len(content["lines"]) == 2
    left = sorted(path.name for path in out.iterdir() if "lock" not in path.name)
    assert left == ["a.png.png", "b.png.png", "detections.json", "detections.jsonl"]
    for line in content["lines"]:
        with Image.open(out / line["drawn"]) as drawn:
            drawn.load()


@pytest.mark.command
def test_a_signal_while_the_last_image_is_drawn_has_one_last_line(photos, tmp_path):
    """The main thread waits for the image, and then says nothing."""
    out = tmp_path / "out"
    kill = "if path.name == 'g.png.png': os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)"
    done = run_with(kill, "", out, photos)
    assert done.returncode == 128 + signal.SIGINT and done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert last == f"stopped by SIGINT: 7 images, 0 skipped, 7 detections: {out}/detections.json"
    assert len(lines) == 7 and all(" images/s | " in line for line in lines)
    assert detections(out)["complete"]


@pytest.mark.command
def test_a_signal_says_the_error_that_the_main_thread_has_not_noticed(photos, tmp_path):
    """The fourth image cannot be written while the fifth is computed."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "d.png.png").mkdir()
    lines = str(out / "detections.jsonl")
    event = f"wait_for_lines({lines!r}, 3); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    done = run_with("pass", event, out, photos)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: IsADirectoryError: ") and "d.png.png" in done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM: 3 images, 0 skipped, 4 missing (")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_annotated_image_that_cannot_be_written_ends_the_command(
    photos, tmp_path, capsys, batch_size
):
    """A file lies where the folder of the annotated image is to be."""
    module = {"event": ""}
    exec(CODE, module)
    (photos / "c").mkdir()
    for name in SEVEN[2:]:
        (photos / name).rename(photos / "c" / name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "c").touch()
    status = module["run"](out, str(photos), batch_size=batch_size)
    said = capsys.readouterr()
    assert status == ExitStatus.ERROR and said.err.count("\n") == 1
    assert said.err.startswith(f"error: {out}/c: File exists; ")
    content = detections(out)
    assert not content["complete"] and content["names"] == ["a.png", "b.png"]
    assert len(content["lines"]) == 2
    last = said.out.splitlines()[-1]
    assert last.startswith("stopped by an error: 2 images, 0 skipped, 5 missing (")


def test_a_folder_that_another_command_writes_is_refused(photos, tmp_path):
    """The lock of a killed command does not stay: the operating system releases it."""
    module = {"event": ""}
    exec(CODE, module)
    out = tmp_path / "out"
    out.mkdir()
    with locked_folder(out), pytest.raises(FileExistsError, match="is being written by process"):
        module["run"](out, str(photos))
    assert not (out / "detections.json").exists()
    (out / ".lock").write_text("process 1 on a host that is gone\n")
    assert module["run"](out, str(photos)) == 0 and detections(out)["complete"]


def test_a_full_disk_and_broken_images_are_said_in_the_last_line(photos, tmp_path, capsys):
    module = {"event": ""}
    exec(CODE, module)
    (photos / "b.png").write_bytes(b"no image")
    assert module["run"](tmp_path / "out", str(photos)) == 1
    content = detections(tmp_path / "out")
    assert content["complete"] and content["names"] == [SEVEN[0], *SEVEN[2:]]
    assert len(content["skipped"]) == 1 and "b.png" in content["skipped"][0]
    assert capsys.readouterr().out.splitlines()[-1].startswith("6 images, 1 skipped, 6 detections")

    # The file that a full disk does not take is that of the fifth image.
    assert (tmp_path / "out" / "detections.jsonl").read_bytes().count(b"\n") == 6
    full = tmp_path / "full"
    full.mkdir()
    (full / f"f.png.png.partial-{os.getpid()}").symlink_to("/dev/full")
    assert module["run"](full, str(photos)) == ExitStatus.NO_SPACE
    content = detections(full)
    assert not content["complete"] and content["names"] == ["a.png", "c.png", "d.png", "e.png"]
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith(f"error: {full}/f.png.png: No space left on device")
    line = said.out.splitlines()[-1]
    assert line.startswith("stopped by an error: 4 images, 1 skipped, 2 missing (")


def test_a_line_that_the_disk_does_not_take_leaves_the_lines_before_it(tmp_path, monkeypatch):
    files = DetectionFiles(tmp_path, ("cat",), {}, 2)
    files.begin()
    found = Detected(
        np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32),
        ("cat",), ("cat",), (30, 40),
    )  # fmt: skip
    files.add(Path("a.png"), "a.png", None, found, InputImage(0, PIXELS))
    whole = (tmp_path / "detections.jsonl").read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[: len(data) // 2])

    files._file = Full(tmp_path / "detections.jsonl", "r+")
    files._file.seek(0, os.SEEK_END)
    with pytest.raises(OSError, match=r"No space left on device.*detections\.jsonl"):
        files.add(Path("b.png"), "b.png", None, found, InputImage(1, PIXELS))
    assert (tmp_path / "detections.jsonl").read_bytes() == whole


def test_several_images_at_once_are_lost_together_and_named(photos, capsys):
    """Three images wait for each other, and a broken one does not count."""
    (photos / "b.png").write_bytes(b"no image")
    run, seen = ImageRun([photos / name for name in SEVEN], together=3), []

    def process(images):
        seen.append([SEVEN[image.number] for image in images])
        if len(seen) == 2:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "out")
        return ["done"] * len(images)

    assert run.run(process, text_of, text_of, lambda: "in out") == ExitStatus.NO_SPACE
    assert seen == [["a.png", "c.png", "d.png"], ["e.png", "f.png", "g.png"]]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("stopped by an error: 3 images, 1 skipped, 3 missing (")
    assert f"({photos}/e.png" in last and not run.is_complete()


def test_a_last_write_that_fails_is_one_line_with_its_status(photos, capsys):
    def save():
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "out/detections.json")

    run = ImageRun([photos / "a.png"], save)
    status = run.run(lambda images: ["1 detection"], text_of, text_of, lambda: "in out")
    assert status == ExitStatus.NO_SPACE
    said = capsys.readouterr()
    assert said.err.startswith("error: out/detections.json: Disk quota exceeded; ")
    assert said.err.count("\n") == 1
    assert said.out.splitlines()[-1] == "stopped by an error: 1 images, 0 skipped, in out"


def test_results_are_named_by_the_path_below_the_common_folder(tmp_path, monkeypatch):
    for name in ("a/x.jpg", "b/x.jpg", "b/c/x.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    paths = list_images(["a", "b", str(tmp_path / "a" / "x.jpg"), "./a/../b/x.jpg", "b/c/x.png"])
    assert relative_names(paths) == ["a/x.jpg", "b/x.jpg", "b/c/x.png"]
    assert relative_names([Path("a/x.jpg")]) == ["x.jpg"]
    # Folders at any depth, without the results of an earlier run.
    (tmp_path / "found" / "b").mkdir(parents=True)
    (tmp_path / "found" / "b" / "x.jpg.png").touch()
    several = list_images(["."], without="found")
    assert [path.as_posix() for path in several] == ["a/x.jpg", "b/x.jpg", "b/c/x.png"]
    assert list_images(["**/x.*"], without="found/") == sorted(several)
    assert len(list_images(["."])) == 4 and len(list_images(["found"], without="found")) == 1


def test_tiles_are_those_of_the_flags_and_stand_in_the_dataset(photos, tmp_path, capsys):
    module = {"event": ""}
    exec(CODE, module)
    tiles = []
    module["Model"].detect_tiles = lambda self, image, classes, tile, overlap, **settings: (
        tiles.append((tile, overlap)) or self.detect([image], classes)[0]
    )
    for overlap, used in ((None, 0.2), (0.0, 0.0)):
        more = {"tile": 16, "overlap": overlap, "batch_size": 4}
        assert module["run"](tmp_path / "out", str(photos), **more) == 0
        assert tiles[-7:] == [(16, used)] * 7
        content = detections(tmp_path / "out")
        assert (content["tile"], content["overlap"]) == (16, used)
    arguments = ["--checkpoint", "none", "--images", str(photos), "--output", str(tmp_path / "no")]
    for flags, message in (
        (["--overlap", "0.2"], "--overlap: found no --tile"),
        (["--tile", "0"], "tile: found 0"),
        (["--tile", "9", "--overlap", "1"], "overlap: found 1.0"),
        (["--batch_size", "0"], "--batch_size: found 0"),
        (["--max_boxes", "-1"], "--max_boxes: found -1"),
        (["--require_platform", "tpu"], "require_platform: expected tpu, found "),
    ):
        assert detect.main([*arguments, *flags]) == 1
        assert f"error: {message}" in capsys.readouterr().err


def test_an_image_is_never_overwritten(photos, capsys):
    """The annotated image of x.png would be x.png.png, another image of the folder."""
    module = {"event": ""}
    exec(CODE, module)
    (photos / "a.png.png").write_bytes((photos / "a.png").read_bytes())
    with pytest.raises(ValueError, match="a.png.png would replace one of the images"):
        module["run"](photos, str(photos / "*.png"))
    assert not (photos / "detections.json").exists()


def test_without_drawing_only_the_two_files_are_written(photos, capsys):
    module = {"event": ""}
    exec(CODE, module)
    (photos / "a.png.png").write_bytes((photos / "a.png").read_bytes())
    before = {path.name for path in photos.iterdir()}
    assert module["run"](photos, str(photos / "*.png"), no_drawing=True) == 0
    written = {path.name for path in photos.iterdir()} - before
    assert {name for name in written if "lock" not in name} == {
        "detections.json",
        "detections.jsonl",
    }
    found = detections(photos)
    assert found["complete"] and {line["drawn"] for line in found["lines"]} == {None}
