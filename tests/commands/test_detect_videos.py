"""`regionclip detect` on videos that the tests write; the extra ``video`` reads them."""

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.commands import detect
from regionclip_jax.data.loading import video
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.model import Detected
from regionclip_jax.reporting.drawing import CLASS_COLOURS
from regionclip_jax.settings import DetectionSettings

av = pytest.importorskip("av", reason="needs the extra video")
NUM_FRAMES, RATE = 12, 6


def write_video(path, colours=range(NUM_FRAMES), codec="mpeg4", size=(48, 64)):
    """Write frames of one grey each, 20 x number, every one a key frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 1
        for number in colours:
            pixels = np.full((*size, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def damage(path, number: int):
    """Overwrite the packet of a frame."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        position, size = packets[number].pos, packets[number].size
    content = bytearray(path.read_bytes())
    content[position : position + size] = bytes(size)
    path.write_bytes(content)


@pytest.mark.parametrize("ending", video.VIDEO_ENDINGS)
def test_every_nth_frame_of_each_container_is_read(tmp_path, ending):
    path = write_video(tmp_path / f"clip{ending}", codec="vp9" if ending == ".webm" else "mpeg4")
    frames = list(video.read_frames(path, 5))
    assert [frame.number for frame in frames] == [0, 5, 10]
    assert [round(frame.time * RATE) for frame in frames] == [0, 5, 10]
    for frame in frames:
        assert frame.pixels.shape == (48, 64, 3)
        assert abs(frame.pixels.mean() - 20 * frame.number) < 3
    assert video.frame_rate(path) == RATE


def test_a_turned_video_is_read_upright(tmp_path):
    """Phones state a rotation; viewers turn the frames."""
    plain = write_video(tmp_path / "plain.mp4", [0])
    content = plain.read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    zero, minus, last = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), b"\x40\0\0\0"
    straight = one + zero * 3 + one + zero * 3 + last
    quarter = zero + one + zero + minus + zero * 4 + last
    header = content.index(b"tkhd")
    start = content.index(straight, header)
    (tmp_path / "turned.mp4").write_bytes(content[:start] + quarter + content[start + 36 :])
    (frame,) = video.read_frames(tmp_path / "turned.mp4")
    assert frame.pixels.shape == (64, 48, 3)


def test_a_file_that_is_no_video_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    # A playlist would read other files, were FFmpeg left to guess.
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("text.mp4", "list.mp4", "cut.mp4"):
        with pytest.raises(RecordError, match=f"{name}: ") as caught:
            list(video.read_frames(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_frames_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(video, "MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(RecordError, match="frames of 48 x 64 are more than 3071 pixels"):
        list(video.read_frames(path))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``command(*flags)``: status of the command with a detector of one box."""

    class Model:
        directory, card = "models/none", types.SimpleNamespace(source={})
        scores = types.SimpleNamespace(detection=DetectionSettings())
        together: list[int] = []

        def vocabulary(self, names):
            return types.SimpleNamespace(names=("cat",))

        def require_proposals(self):
            pass

        def detect(self, images, classes, **_):
            self.together.append(len(images))
            box, score = np.array([[9, 9, 40, 40]], np.float32), np.ones(1, np.float32)
            return [
                Detected(box, score, np.zeros(1, int), ("cat",), ("cat",), image.shape[:2])
                for image in images
            ]

    monkeypatch.setattr(detect, "load", lambda *_, **__: Model())
    fixed = ["--checkpoint", "none", "--classes", "cat", "--images", str(tmp_path / "in")]
    (tmp_path / "in").mkdir()
    return lambda *flags: detect.main([*fixed, "--output", str(tmp_path / "out"), *flags])


def test_images_and_videos_of_a_folder_give_one_dataset_and_annotated_videos(
    command, tmp_path, capsys
):
    write_video(tmp_path / "in" / "b.mp4")
    Image.new("RGB", (50, 50)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "in" / "c.png")
    assert command("--every", "2", "--batch_size", "2") == 0
    lines = [
        json.loads(x) for x in (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    ]
    assert [line.get("frame") for line in lines] == [None, 0, 2, 4, 6, 8, 10, None]
    assert [round(line["time"] * RATE) for line in lines[1:-1]] == [0, 2, 4, 6, 8, 10]
    dataset = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert dataset["images"][2]["file_name"] == "b.mp4/frame_000002.png"
    assert dataset["info"]["complete"] and len(dataset["annotations"]) == 8
    assert {line["drawn"] for line in lines} == {"a.png.png", "b.mp4.mp4", "c.png.png"}
    with av.open(str(tmp_path / "out" / "b.mp4.mp4")) as container:
        assert container.streams.video[0].average_rate == RATE / 2
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6 and frames[0].shape[1] >= 320  # enlarged
    greys = [float(frame[-9:, -9:].mean()) for frame in frames]
    np.testing.assert_allclose(greys, [40 * number for number in range(6)], atol=6)
    assert (np.abs(frames[3].astype(int) - CLASS_COLOURS[0]).max(-1) < 40).any()
    assert command("--output", str(tmp_path / "undrawn"), "--no_drawing") == 0
    assert not list((tmp_path / "undrawn").glob("*.mp4"))


def test_broken_frames_are_skipped_and_counted(command, tmp_path, capsys):
    path = write_video(tmp_path / "in" / "b.avi", codec="mjpeg")
    damage(path, 5)
    (tmp_path / "in" / "a.mp4").write_text("no video")
    assert command() == 1
    said = capsys.readouterr()
    assert said.err.count("skipped: ") == 2 and "a.mp4" in said.err and "frame 5" in said.err
    assert f"{NUM_FRAMES - 1} images, 2 skipped" in said.out.splitlines()[-1]
    info = json.loads((tmp_path / "out" / "detections.json").read_text())["info"]
    assert info["complete"] and len(info["skipped"]) == 2


def test_an_error_in_a_video_leaves_the_frames_before_it(command, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "in" / "b.mp4")
    write_video(tmp_path / "in" / "c.mp4")
    add = detect.DetectionFiles.add

    def full(self, path, name, drawn, found, image):
        if image.frame == 7:
            raise OSError(28, "No space left on device", str(path))
        add(self, path, name, drawn, found, image)

    monkeypatch.setattr(detect.DetectionFiles, "add", full)
    assert command() == 73
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("stopped by an error: 7 images, 0 skipped, 2 missing (")
    dataset = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(dataset["images"]) == 7 and not dataset["info"]["complete"]
    with av.open(str(tmp_path / "out" / "b.mp4.mp4")) as container:
        assert len(list(container.decode(video=0))) == 8


def test_without_the_extra_a_video_is_refused_before_the_model_is_loaded(
    command, tmp_path, monkeypatch, capsys
):
    (tmp_path / "in" / "b.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    assert command() == 1
    assert 'pip install -e ".[video]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
