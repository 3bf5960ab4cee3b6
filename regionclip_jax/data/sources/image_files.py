"""List, measure and read image files."""

import collections
import glob
import io
import os
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from regionclip_jax.data.sources.records import RecordError

# More than nearly all cameras produce, and 400 MB of RGB in each decoding thread. A file of a few
# kilobytes can claim any size.
MOST_PIXELS = 2**27
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def present_files(folder: pathlib.Path, names: Iterable[str]) -> set[str]:
    """Return those of the names, relative to a folder, whose files exist.

    Every folder is listed once: on a network disk this is far faster than checking every file.
    """
    by_parent = collections.defaultdict(list)
    for name in names:
        parent, _, last = name.rpartition("/")
        by_parent[parent].append((last, name))
    present = set()
    for parent, wanted in by_parent.items():
        try:
            found = set(os.listdir(folder / parent))
        except (OSError, ValueError):  # ValueError: a NUL in the name
            continue
        present.update(name for last, name in wanted if last in found)
    return present


def read_image(path: pathlib.Path, source: str, key: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        RecordError: the file cannot be read; ``source`` and ``key`` name the record.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(source, key, f"cannot be read: {error}") from error


def image_size(file: bytes | pathlib.Path) -> tuple[int, int] | None:
    """Return (height, width) from an image's header without decoding; None if unreadable."""
    try:
        with open_image(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.height, image.width
    except Exception:  # as in decode_image, which reports the reason later
        return None


def open_image(file: io.BytesIO | pathlib.Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"{image.height} x {image.width} (height x width) are more than {MOST_PIXELS} pixels; "
            "make the image smaller"
        )
    return image


def list_images(given: Sequence[str]) -> list[Path]:
    """Return the files of paths, folders (not recursive) and glob patterns, each once.

    Raises:
        FileNotFoundError: one of them matches no file.
    """
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            some = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS)
        elif path.exists():
            some = [path]
        else:
            some = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        if not some:
            raise FileNotFoundError(
                f"{name}: expected an image, a folder with images ({', '.join(_ENDINGS)}), or a "
                "pattern such as 'photos/*.jpg', found none"
            )
        found += some
    return list({os.path.abspath(path): path for path in reversed(found)}.values())[::-1]


def relative_names(paths: Sequence[Path]) -> list[str]:
    """Return each path relative to the folder that holds all of them, with "/".

    Different files have different names, so they name what is written for a file.
    """
    absolute = [os.path.abspath(path) for path in paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [Path(os.path.relpath(path, folder)).as_posix() for path in absolute]
