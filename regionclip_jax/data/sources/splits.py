"""Say what to change if a folder has no split of the given name."""

import itertools
import pathlib
from collections.abc import Callable, Iterator

_MOST_FOLDERS = 50  # searched for the layout, if the given one is too high up
_NUM_NAMED = 9

# Root -> names of the splits in it.
FindSplits = Callable[[pathlib.Path], list[str]]


def require_split(
    root: pathlib.Path, split: str, find_splits: FindSplits, layout: str, hint: str = ""
) -> None:
    """Check that a root has a split.

    Args:
        root: path in the settings.
        split: name in the settings.
        find_splits: finds the splits of a root in this layout.
        layout: the expected files, for the error.
        hint: further remedy, if the root has no split at all.

    Raises:
        FileNotFoundError: no such split; the message has the splits that exist, or the folder that
            has the layout.
    """
    splits = find_splits(root)
    if split in splits:
        return
    if splits:
        remedy = f"it has {splits[:_NUM_NAMED]}: set split to one of them"
    elif near := next((near for near in _near(root) if find_splits(near)), None):
        remedy = f"{near} has {find_splits(near)[:_NUM_NAMED]}: set path to it"
    elif hint:
        remedy = hint
    else:
        found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        remedy = f"it holds {found[:_NUM_NAMED]}: correct path, split or source"
    raise FileNotFoundError(f"{root} has no split {split!r}: expected {layout}; {remedy}")


def find_files_elsewhere(folder: pathlib.Path, name: str) -> str:
    """Return the remedy if a named file is not in a folder: the folder that has it, if one is near.

    Args:
        folder: folder of the images.
        name: name of an image, as in the annotations.
    """
    if near := next((near for near in _near(folder) if (near / name).is_file()), None):
        return f"{near} has {name}: set path and split to that folder"
    last = pathlib.PurePath(name.replace("\\", "/")).name
    if last != name and (folder / last).is_file():
        return f"{folder} has {last}, without the folder of that name: remove it from the names"
    return f"download and unpack the images into {folder}"


def _near(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the folders in a root, and the two above it."""
    if root.is_dir():
        folders = (path for path in sorted(root.iterdir()) if path.is_dir())
        yield from itertools.islice(folders, _MOST_FOLDERS)
    yield from root.absolute().parents[:2]
