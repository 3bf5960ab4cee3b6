"""Write files whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing; it takes the place of ``path`` when the block ends without error.

    Readers find the old file, or the whole new one, after a crash too: the content reaches the disk
    before the name changes. After an error nothing is left. Folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that renaming it is one step; with the process, so that two processes
    # that write the same file do not mix their content.
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Replace the content of a text file at once, in UTF-8 and with the line ends of ``text``."""
    with replaced_file(path) as file:
        file.write(text.encode())
