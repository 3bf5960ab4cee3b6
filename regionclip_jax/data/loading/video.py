"""Read the frames of video files, and write annotated ones, with PyAV (the extra ``video``)."""

import importlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.data.sources.image_opening import MOST_PIXELS
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.untrusted import open_regular, reason

# Ending -> FFmpeg's reader. FFmpeg is not left to guess: its readers of playlists open other files.
_READERS = {
    ".mp4": "mov", ".m4v": "mov", ".mov": "mov",
    ".mkv": "matroska", ".webm": "matroska",
    ".avi": "avi",
}  # fmt: skip
VIDEO_ENDINGS = tuple(_READERS)
# A damaged file may have a packet for every few bytes; each would be one line.
_MOST_BROKEN = 100
_USUAL_RATE = Fraction(25)


class VideoFrame(NamedTuple):
    """Frame of a video: its number from 0, its time in seconds, and RGB pixels, turned upright."""

    number: int
    time: float
    pixels: UInt8[np.ndarray, "H W 3"]


def is_video(path: Path) -> bool:
    """Return True if the ending is one of ``VIDEO_ENDINGS``."""
    return path.suffix.lower() in _READERS


def frame_rate(path: Path) -> Fraction:
    """Return the frames per second that the file states; 25 if it states none."""
    av = importlib.import_module("av")
    try:
        with open_regular(path) as file, _opened(av, file, path) as container:
            return container.streams.video[0].average_rate or _USUAL_RATE
    except (av.error.FFmpegError, IndexError, OSError):  # read_frames says why
        return _USUAL_RATE


def read_frames(path: Path, every: int = 1) -> Iterator[VideoFrame | RecordError]:
    """Yield each ``every``-th frame of a video, or the reason why it is missing.

    Args:
        every: 1 for all frames.

    Raises:
        RecordError: the file is no video, its frames are too large, or too many are broken.
        OSError: the file cannot be opened.
    """
    av = importlib.import_module("av")
    source, key = str(path.parent), path.name
    number = num_broken = 0
    with open_regular(path) as file:
        try:
            with _opened(av, file, path) as container:
                if not container.streams.video:
                    raise RecordError(source, key, "no video stream; give a file with images")
                stream = container.streams.video[0]
                _require_small(stream.codec_context, source, key)
                for packet in container.demux(stream):
                    try:
                        frames = packet.decode()
                    except av.error.FFmpegError as error:
                        num_broken += 1
                        if num_broken > _MOST_BROKEN:
                            raise RecordError(
                                source, key, f"more than {_MOST_BROKEN} broken frames; repair it"
                            ) from error
                        yield RecordError(source, f"{key} frame {number}", reason(error))
                        number += 1
                        continue
                    for frame in frames:
                        if number % every == 0:
                            _require_small(frame, source, key)
                            if frame.is_corrupt:
                                yield RecordError(source, f"{key} frame {number}", "damaged")
                            else:
                                pixels = frame.to_ndarray(format="rgb24")
                                turned = np.rot90(pixels, round(frame.rotation / 90))
                                yield VideoFrame(number, float(frame.time or 0.0), turned)
                        number += 1
        except av.error.FFmpegError as error:
            raise RecordError(source, key, f"cannot be decoded: {reason(error)}") from error
    if number == 0:
        raise RecordError(source, key, "no frame can be decoded; replace the file")


class VideoWriter:
    """Annotated video, MPEG-4 with H.264, readable up to its last second at any time.

    Args:
        path: of the file.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: Fraction):
        path.parent.mkdir(parents=True, exist_ok=True)
        av = importlib.import_module("av")
        # Fragments: without them a file that is not closed has no index, and no player opens it.
        self._container = av.open(
            str(path), "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}
        )
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._av, self._rate = av, rate
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = max(1, round(rate))
        self._size: tuple[int, int] | None = None

    def write(self, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Add a frame; frames of another size than the first are cut or padded to it."""
        if self._size is None:
            # H.264 halves the resolution of colours.
            self._size = (image.shape[0] + 1) // 2 * 2, (image.shape[1] + 1) // 2 * 2
            self._stream.height, self._stream.width = self._size
        height, width = self._size
        image = image[:height, :width]
        padding = [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)]
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(np.pad(image, padding, mode="edge")), format="rgb24"
        )
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _opened(av, file, path: Path):
    return av.open(file, format=_READERS[path.suffix.lower()], metadata_errors="replace")


def _require_small(size, source: str, key: str) -> None:
    if size.width * size.height > MOST_PIXELS:
        raise RecordError(
            source,
            key,
            f"frames of {size.height} x {size.width} are more than {MOST_PIXELS} pixels",
        )
