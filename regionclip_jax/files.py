"""Write files whole or not at all, and lock folders that one process alone may write."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def names_path(path: str | os.PathLike) -> Iterator[None]:
    """Add a path to errors of the operating system that name none, as of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing; it takes the place of ``path`` when the block ends without error.

    Readers find the old file, or the whole new one, after a crash too: the content reaches the disk
    before the name changes. After an error nothing is left. Folders are made as needed.
    """
    path = Path(path)
    with names_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that renaming it is one step; with the process, so that two
        # processes that write the same file do not mix their content.
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):  # of the same disk
                partial.unlink(missing_ok=True)
            raise


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Replace the content of a text file at once, in UTF-8 and with the line ends of ``text``."""
    with replaced_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def locked_folder(path: str | os.PathLike, lock_name: str = ".lock") -> Iterator[bool]:
    """Hold the lock of a folder, so that no second process writes it.

    The operating system releases the lock when the process ends, however it ends. Child processes
    that are spawned do not inherit it.

    Args:
        path: an existing folder.
        lock_name: name of the lock file in it, which stays there.

    Yields:
        False if the file system has no locks, and nothing is locked.

    Raises:
        FileExistsError: another process holds the lock.
    """
    with open(Path(path) / lock_name, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FileExistsError(
                f"{path} is being written by {holder}: wait for it, stop it, or choose another "
                "folder"
            ) from error
        except OSError:  # a network file system without locks
            locked = False
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield locked
