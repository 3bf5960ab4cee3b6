"""Reading and writing of images beside their computation: order, bounds, and errors in threads."""

import contextlib
import errno
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.commands import image_run, input_images
from regionclip_jax.commands.image_run import ImageRun
from regionclip_jax.commands.input_images import InputImage
from regionclip_jax.failures import ExitStatus

SECONDS = 60.0  # until a test fails instead of waiting for ever


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Nine images of 20 x 30 pixels."""
    paths = [tmp_path / f"{letter}.png" for letter in "abcdefghi"]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((20, 30, 3), 20 * number, np.uint8)).save(path)
    return paths


class Recorded:
    """Functions of a run that say "done"; ``numbers`` are those of the recorded images."""

    def __init__(self):
        self.numbers: list[int] = []

    def compute(self, images: list[InputImage]) -> list[int]:
        return [int(image.pixels[0, 0, 0]) // 20 for image in images]

    def write(self, image: InputImage, result: int) -> int:
        assert result == image.number
        return result

    def record(self, image: InputImage, written: int) -> str:
        assert written == image.number
        self.numbers.append(written)
        return "done"

    def run(self, run: ImageRun) -> int:
        """Run in a thread, so that a run that hangs fails."""
        ends: list[int | BaseException] = []

        def call() -> None:
            try:
                ends.append(run.run(self.compute, self.write, self.record, lambda: "here"))
            except BaseException as error:
                ends.append(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the run hangs"
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith(("read", "write", "record"))]
        (end,) = ends
        if isinstance(end, BaseException):
            raise end
        return end


@pytest.mark.parametrize("together", [1, 3])
def test_the_next_images_are_read_while_some_are_computed(photos, monkeypatch, together):
    began = [threading.Event() for _ in photos]
    read = input_images.read_any_image

    def note(path):
        began[photos.index(path)].set()
        return read(path)

    class Slow(Recorded):
        def compute(self, images):
            for number in range(images[-1].number + 1, images[-1].number + 1 + together):
                assert number >= len(photos) or began[number].wait(SECONDS)
            return super().compute(images)

    monkeypatch.setattr(input_images, "read_any_image", note)
    recorded = Slow()
    assert recorded.run(ImageRun(photos, together=together)) == 0
    assert recorded.numbers == list(range(9))


@pytest.mark.parametrize("together", [1, 3])
def test_the_last_results_are_written_while_the_next_are_computed(photos, together):
    """A write and the next computation wait for each other."""
    meetings = {number: threading.Barrier(2) for number in range(together - 1, 8, together)}

    class Slow(Recorded):
        def compute(self, images):
            if images[0].number:
                meetings[images[0].number - 1].wait(SECONDS)
            return super().compute(images)

        def write(self, image, result):
            if image.number in meetings:
                meetings[image.number].wait(SECONDS)
            return super().write(image, result)

    recorded = Slow()
    assert recorded.run(ImageRun(photos, together=together)) == 0
    assert recorded.numbers == list(range(9))


def test_results_that_are_written_in_another_order_are_recorded_in_order(photos, monkeypatch):
    monkeypatch.setattr("regionclip_jax.commands.overlapping.NUM_WRITERS", 3)
    written: list[int] = []
    is_written = [threading.Event() for _ in photos]

    class Reversed(Recorded):
        def write(self, image, result):
            if image.number % 3 < 2:
                assert is_written[image.number + 1].wait(SECONDS)
            written.append(image.number)
            is_written[image.number].set()
            return super().write(image, result)

    recorded = Reversed()
    assert recorded.run(ImageRun(photos, together=3)) == 0
    assert recorded.numbers == list(range(9)) != written
    assert sorted(written) == recorded.numbers


@pytest.mark.parametrize(
    ("together", "pixels", "most"),
    [
        (1, 2**27, 3),
        (2, 2**27, 6),
        # Two images are computed at once, and there is room for four: the last one may exceed it.
        (8, 2 * 600 - 1, 4),
        (8, 1, 1),
    ],
)
def test_the_images_in_memory_are_bounded(photos, monkeypatch, together, pixels, most):
    """No image is recorded until as many are read as there may be."""
    monkeypatch.setattr(image_run, "NUM_WRITERS", 1)
    monkeypatch.setattr(image_run, "_MOST_WAITING_PIXELS", pixels)
    monkeypatch.setattr(image_run, "_MOST_PIXELS", 2 * pixels)
    changed = threading.Condition()
    num_read = 0
    read = input_images.read_any_image

    def count(path):
        nonlocal num_read
        with changed:
            num_read += 1
            assert num_read - len(recorded.numbers) <= most
            changed.notify_all()
        return read(path)

    class Waiting(Recorded):
        def record(self, image, written):
            with changed:
                expected = min(len(self.numbers) + most, len(photos))
                assert changed.wait_for(lambda: num_read >= expected, SECONDS)
                return super().record(image, written)

    monkeypatch.setattr(input_images, "read_any_image", count)
    recorded = Waiting()
    assert recorded.run(ImageRun(photos, together=together)) == 0
    assert recorded.numbers == list(range(9))


def test_a_skipped_image_is_said_at_its_place(photos, monkeypatch):
    for number in (0, 4, 5, 8):
        photos[number].write_bytes(b"no image")
    said = io.StringIO()

    class Skipping(Recorded):
        def compute(self, images):
            return [image.number for image in images]

    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        recorded = Skipping()
        run = ImageRun(photos, together=2)
        assert recorded.run(run) == 1
    assert recorded.numbers == [1, 2, 3, 6, 7] and run.is_complete()
    *lines, last = said.getvalue().splitlines()
    assert last == "5 images, 4 skipped, here"
    assert [line.startswith("skipped: ") for line in lines] == [n in (0, 4, 5, 8) for n in range(9)]
    assert all(path.name in line for path, line in zip(photos, lines, strict=True))
    assert [photos[n].name in message for n, message in zip((0, 4, 5, 8), run.skipped, strict=True)]


@pytest.mark.parametrize("together", [1, 4])
def test_an_unexpected_error_of_a_reader_is_raised_after_the_images_before_it(
    photos, monkeypatch, capsys, together
):
    read = input_images.read_any_image

    def fail(path):
        if path == photos[5]:
            raise RuntimeError("the decoder is broken")
        return read(path)

    monkeypatch.setattr(input_images, "read_any_image", fail)
    recorded = Recorded()
    with pytest.raises(RuntimeError, match="the decoder is broken"):
        recorded.run(ImageRun(photos, together=together))
    assert recorded.numbers == list(range(5 // together * together))
    num_done = len(recorded.numbers)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"stopped by an error: {num_done} images, 0 skipped, {9 - num_done} ")


def test_results_are_finished_before_an_error_of_a_later_image(photos, capsys):
    """The write of the third image ends when the computation of the fourth has failed."""
    has_failed = threading.Event()

    class Failing(Recorded):
        def compute(self, images):
            if images[0].number == 3:
                has_failed.set()
                raise ValueError("the images are too strange")
            return super().compute(images)

        def write(self, image, result):
            assert image.number < 2 or has_failed.wait(SECONDS)
            return super().write(image, result)

    recorded = Failing()
    assert recorded.run(ImageRun(photos)) == ExitStatus.ERROR
    said = capsys.readouterr()
    assert recorded.numbers == [0, 1, 2] and said.err == "error: the images are too strange\n"
    assert said.out.splitlines()[-1].startswith("stopped by an error: 3 images, 0 skipped, 6 miss")


@pytest.mark.parametrize("together", [1, 2, 9])
@pytest.mark.parametrize("place", ["write", "record"])
def test_an_error_of_a_thread_stops_the_run_at_its_image(photos, capsys, together, place):
    """Later images that are computed or written already are not recorded."""

    class Failing(Recorded):
        def fail(self, number: int) -> None:
            if number == 4:
                raise OSError(errno.EROFS, "Read-only file system", "out/e.png")

        def write(self, image, result):
            if place == "write":
                self.fail(image.number)
            return super().write(image, result)

        def record(self, image, written):
            if place == "record":
                self.fail(image.number)
            return super().record(image, written)

    recorded = Failing()
    assert recorded.run(ImageRun(photos, together=together)) == ExitStatus.NOT_PERMITTED
    said = capsys.readouterr()
    assert recorded.numbers == [0, 1, 2, 3] and said.err.count("\n") == 1
    assert said.err.startswith("error: out/e.png: Read-only file system; ")
    assert said.out.splitlines()[-1].startswith("stopped by an error: 4 images, 0 skipped, 5 miss")


def test_a_bug_in_a_thread_is_raised_and_ends_a_run_that_waits_for_room(photos, monkeypatch):
    """The writers wait until there is no room for the fourth image."""
    monkeypatch.setattr(image_run, "NUM_WRITERS", 1)
    are_full = threading.Event()

    class Buggy(Recorded):
        def compute(self, images):
            if images[0].number == 2:
                are_full.set()
            return super().compute(images)

        def write(self, image, result):
            assert are_full.wait(SECONDS)
            raise KeyError("a bug") if image.number == 0 else ZeroDivisionError

    with pytest.raises(KeyError, match="a bug"):
        Buggy().run(ImageRun(photos))


def test_after_an_error_of_a_thread_no_image_is_computed(photos, monkeypatch):
    """The error comes during the second computation, when the images of a third one are read."""
    monkeypatch.setattr(image_run, "NUM_WRITERS", 1)
    are_read, is_second, computed = threading.Event(), threading.Event(), []
    read = input_images.read_any_image

    def note(path):
        if path == photos[5]:
            are_read.set()
        return read(path)

    class Failing(Recorded):
        def compute(self, images):
            computed.append([image.number for image in images])
            if images[0].number == 2:
                assert are_read.wait(SECONDS)
                is_second.set()
                for thread in threading.enumerate():
                    if thread.name == "record":
                        thread.join(SECONDS)
            return super().compute(images)

        def write(self, image, result):
            assert is_second.wait(SECONDS)
            raise ValueError("the image cannot be drawn")

    monkeypatch.setattr(input_images, "read_any_image", note)
    recorded = Failing()
    assert recorded.run(ImageRun(photos, together=2)) == ExitStatus.ERROR
    assert computed == [[0, 1], [2, 3]] and recorded.numbers == []
