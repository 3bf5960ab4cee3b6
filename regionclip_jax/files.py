"""Read users' files within bounds, write files whole or not at all, and lock folders.

Readers accept regular files only: a pipe, device or socket may never end.
"""

import contextlib
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: no such file, or it is not a regular one.
        OSError: the file cannot be opened.
    """
    # Without O_NONBLOCK this would wait for the writer of a named pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(
            f"{path} is a folder, pipe, device or socket, expected a regular file: save the data "
            "in one and give its path"
        )
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike, most_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        ValueError: the file is longer than ``most_bytes``.
        OSError: as ``open_regular``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most_bytes else file.read(most_bytes + 1)
    if max(size, len(content)) > most_bytes:
        raise ValueError(f"{path} has more than {most_bytes} bytes, expected at most these")
    return content


def read_json(path: str | os.PathLike, remedy: str) -> object:
    """Return the content of a JSON file of any size, in UTF-8 with or without a byte order mark.

    Args:
        remedy: for the error.

    Raises:
        ValueError: not UTF-8, not JSON, or nested too deep; one line that names the file.
        OSError: as ``open_regular``.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8 or not JSON
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error


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
