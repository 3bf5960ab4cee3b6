"""Read content that others wrote: regular files, JSON, bounds, and values in messages.

The bounds follow from the size of a file, so a small file never costs much. docs/hostile_files.md
lists the readers and their bounds. A pipe, device or socket may never end, so readers refuse them.
"""

import io
import json
import math
import os
import reprlib
import stat
from pathlib import Path
from typing import Any, NoReturn

# The largest JSON file of a model is a self-check, whose image has some 100,000 bytes.
MAX_JSON_BYTES = 2**22
MAX_JSON_DEPTH = 32
_MAX_SHOWN = 120


def most_bytes(stored: int) -> int:
    """Return the bound of the content of a file of ``stored`` bytes, once it is unpacked.

    Weights do not compress to a sixteenth. The constant allows for small files of zeros.
    """
    return 16 * stored + 2**24


class _Repr(reprlib.Repr):
    """``repr`` of the outermost values, in time that does not depend on the rest.

    Objects may share their parts, and then a whole ``repr`` can take exponential time.
    """

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = _MAX_SHOWN

    def repr_bytes(self, value, level: int) -> str:
        return repr(value[:_MAX_SHOWN])

    def repr_int(self, value: int, level: int) -> str:
        # Python does not print numbers of thousands of digits.
        return repr(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"


def short(value: Any) -> str:
    """Return the start of ``repr(value)``, for messages."""
    return _cut(_Repr().repr(value))


def reason(error: BaseException) -> str:
    """Return the start of a library's error as one line."""
    return f"{type(error).__name__}: {_one_line(error)}"


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
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


def read_large_json(path: str | os.PathLike, remedy: str) -> Any:
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


def read_model_json(path: str | Path) -> Any:
    """Return the content of a JSON file of a model.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has more than ``MAX_JSON_BYTES``, or as ``parse_json``.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES), path)


def parse_json(content: bytes | str, where: str | Path = "") -> Any:
    """Return the value of a JSON text; a byte order mark is skipped.

    Args:
        where: start of errors: the file, and perhaps the key.

    Raises:
        ValueError: it is not UTF-8, is no JSON, has NaN or an infinite number, names a key of an
            object twice, or is deeper than ``MAX_JSON_DEPTH``.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        _require_plain(value)
    except (RecursionError, ValueError) as error:
        start = f"{where}: " if where else ""
        raise ValueError(f"{start}expected JSON ({_one_line(error)})") from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {short(key)} occurs more than once")
            seen.add(key)
    return entries


def _require_plain(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        if not all(math.isfinite(item) for item in level if isinstance(item, float)):
            raise ValueError("a number is too large")
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [x for item in inner for x in (item.values() if isinstance(item, dict) else item)]
        if not inner:
            return
    raise ValueError(f"it is deeper than {MAX_JSON_DEPTH} levels")


def _one_line(error: BaseException) -> str:
    return _cut(" ".join(str(error)[:1000].split()))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
