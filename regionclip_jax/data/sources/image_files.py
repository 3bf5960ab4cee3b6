"""List, measure and read image files.

``image_frame`` is the one rule of orientation. An image is turned by its EXIF orientation, as
viewers and labelling tools show it, unless the annotations give the size of the stored pixels only.
So the annotated size decides. Without one, or if both sizes are equal (a square image, or one that
is turned by 180 degrees or mirrored), the image is turned.
"""

import collections
import glob
import os
import pathlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from regionclip_jax.data.sources.image_opening import MOST_BYTES, opened_image, read_orientation
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.untrusted import read_bytes

Size = tuple[int, int]  # height, width

# EXIF orientation -> transposition of the stored pixels; those from 5 on exchange the sides.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_SIDEWAYS = 5
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Listed for commands even if they cannot be read here: the error then says what to install.
COMMAND_ENDINGS = (*ENDINGS, ".avif", ".heic", ".heif")


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
        RecordError: the file cannot be read or is too long; ``source`` and ``key`` name the
            record.
    """
    try:
        return read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise RecordError(source, key, f"cannot be read: {error}") from error


class Frame(NamedTuple):
    """Frame of an image: (height, width), and the transposition of its stored pixels, if any."""

    size: Size
    transposition: Image.Transpose | None


def image_frame(image: Image.Image, annotated: Size | None = None) -> Frame:
    """Decide whether an opened image is turned by its EXIF orientation, by the rule above.

    Args:
        annotated: (height, width) that the annotations give.
    """
    stored, orientation = (image.height, image.width), read_orientation(image)
    turned = (image.width, image.height) if orientation >= _FIRST_SIDEWAYS else stored
    if annotated == stored != turned:
        return Frame(stored, None)
    return Frame(turned, _TRANSPOSITIONS.get(orientation))


def image_size(file: bytes | pathlib.Path, annotated: Size | None = None) -> Size | None:
    """Return (height, width) of an image's frame from its header; None if unreadable.

    Args:
        annotated: as in ``image_frame``.
    """
    try:
        with opened_image(file) as image:
            return image_frame(image, annotated).size
    except Exception:  # as in decode_image, which reports the reason later
        return None


def size_mismatch(found: Size, annotated: Size) -> str | None:
    """Return the reason why boxes of an annotated size do not fit an image; None if they do."""
    if found == annotated:
        return None
    text = (
        f"the image is {found[0]} x {found[1]} (height x width), its annotation says "
        f"{annotated[0]} x {annotated[1]}: "
    )
    if abs(found[0] * annotated[1] - found[1] * annotated[0]) <= max(annotated):
        return text + (
            "it was resized without its annotations; give the original image, or multiply sizes, "
            f"boxes and masks of the annotations by {found[0] / annotated[0]:.4g}"
        )
    if found == annotated[::-1]:
        return text + (
            "height and width are exchanged; correct them in the annotations, or give the image as "
            "it was annotated"
        )
    return text + "one of them belongs to another image; give the image that was annotated"


def list_images(
    given: Sequence[str],
    *,
    without: str | os.PathLike | None = None,
    endings: tuple[str, ...] = COMMAND_ENDINGS,
) -> list[Path]:
    """Return the files of paths, folders (at any depth) and glob patterns, each once.

    Links to folders are not followed.

    Args:
        given: a pattern with ``**`` has any depth too.
        without: a folder of results, of which nothing is listed unless it is given itself.
        endings: of the files in a folder, in lower case.

    Raises:
        FileNotFoundError: one of them matches no file.
    """
    results = None if without is None else os.path.abspath(without)
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            some = []
            for folder, inner, files in os.walk(path):
                inner[:] = sorted(f for f in inner if os.path.abspath(Path(folder, f)) != results)
                some += [Path(folder, f) for f in sorted(files) if f.lower().endswith(endings)]
        elif path.exists():
            some = [path]
        else:
            some = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
            if results is not None:
                some = [p for p in some if not os.path.abspath(p).startswith(results + os.sep)]
        if not some:
            raise FileNotFoundError(
                f"{name}: expected an image, a folder with images ({', '.join(endings)}), or a "
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
