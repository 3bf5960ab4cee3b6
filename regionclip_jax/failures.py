"""Exit statuses of runs and commands, and the one line on stderr that explains them.

``docs/running.md`` lists the statuses. A mistake that a person made has a ``UserError`` or another
exception with a complete message, and the status 1. A failure of the machine is recognized by the
error number of the operating system, and gets its remedy here.
"""

import enum
import errno
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable

from regionclip_jax.settings import UserError

# Set to any text to see the traceback before the line.
TRACEBACK_VARIABLE = "REGIONCLIP_TRACEBACK"


class ExitStatus(enum.IntEnum):
    """Exit status by the kind of failure; numbers above 1 are those of ``sysexits.h``."""

    ERROR = 1
    MISSING = 66  # EX_NOINPUT
    UNREACHABLE = 69  # EX_UNAVAILABLE
    NO_SPACE = 73  # EX_CANTCREAT
    INPUT_OUTPUT = 74  # EX_IOERR
    LOST_PROCESS = 75  # EX_TEMPFAIL
    NOT_PERMITTED = 77  # EX_NOPERM


class Unreachable(UserError):
    """The processes of a run cannot join: the message names the host and the port."""

    exit_status = ExitStatus.UNREACHABLE


_AGAIN = "then start the same command again"
_MISSING = (
    ExitStatus.MISSING,
    f"check the path and the mounts, or bring it back, {_AGAIN}",
)
_PERMISSION = (
    ExitStatus.NOT_PERMITTED,
    f"give this user the permission, or name another folder, {_AGAIN}",
)
# Error number -> status and remedy.
_KINDS = {
    errno.ENOSPC: (ExitStatus.NO_SPACE, f"free space there, or name another disk, {_AGAIN}"),
    errno.EDQUOT: (ExitStatus.NO_SPACE, f"free some of your quota, or name another disk, {_AGAIN}"),
    errno.EFBIG: (ExitStatus.NO_SPACE, f"raise the limit of file sizes (ulimit -f), {_AGAIN}"),
    errno.EROFS: (
        ExitStatus.NOT_PERMITTED,
        f"mount it for writing, or name another folder, {_AGAIN}",
    ),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EEXIST: (ExitStatus.ERROR, "move it away, or name another path"),
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: _MISSING,
    errno.ESTALE: _MISSING,
}
_OTHER = (ExitStatus.INPUT_OUTPUT, f"check the disk or the network, {_AGAIN}")
# Orbax's and ArrayRecord's C++ code raises no OSError. TensorStore's text has the number; that of
# others has the system's words.
_NUMBER = re.compile(r"os_error_code='(\d+)'|\[OS error (\d+)")
_PATH = re.compile(r"[\"'](/[^\"']+)[\"']|(?:^|[\s;:=])(/[^\s;:,\"']+)")
_IN_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


def one_line(*mistakes: type[Exception], prefix: str = "error") -> Callable:
    """Decorate a command's ``main``: an error becomes one line on stderr and an exit status.

    An error that is neither a mistake nor a failure of the machine is a bug, and keeps its
    traceback.

    Args:
        mistakes: exceptions with complete messages, besides ``UserError``.
        prefix: begins the line.
    """

    def decorate(main: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(main)
        def run(*arguments, **options):
            try:
                return main(*arguments, **options)
            except Exception as error:
                explained = explain(error, *mistakes)
                if explained is None:
                    raise
                return report(error, *explained, prefix=prefix)

        return run

    return decorate


def explain(error: Exception, *mistakes: type[Exception]) -> tuple[ExitStatus, str] | None:
    """Return the exit status and the message of an error, or None for a bug.

    Args:
        mistakes: exceptions with complete messages, besides ``UserError``.
    """
    if isinstance(error, UserError):
        return getattr(error, "exit_status", ExitStatus.ERROR), str(error)
    failure = _machine_failure(error)
    if failure is not None:
        return failure
    # Also OSErrors without a number: this package raises them with complete messages.
    if isinstance(error, (*mistakes, OSError)):
        return ExitStatus.ERROR, str(error)
    return None


def report(error: Exception, status: ExitStatus, message: str, *, prefix: str) -> ExitStatus:
    """Print the line of an error, and return its status."""
    try:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error)
        print(f"{prefix}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    except OSError:
        pass  # stderr may be a file on the disk that is full
    return status


def _machine_failure(error: Exception) -> tuple[ExitStatus, str] | None:
    if isinstance(error, OSError):
        if error.errno is None:
            return None
        number, where = error.errno, error.filename
        what = error.strerror or os.strerror(number)
    else:
        text = str(error)
        number, where = _number_in(text), _path_in(text)
        if number is None:
            return None
        what = os.strerror(number)
    status, remedy = _KINDS.get(number, _OTHER)
    named = "" if where is None else f"{os.fsdecode(where)}: "
    return status, f"{named}{what}; {remedy}"


def _number_in(text: str) -> int | None:
    if match := _NUMBER.search(text):
        return int(match[1] or match[2])
    if text.startswith("NOT_FOUND: Error writing"):  # TensorStore's, into a removed folder
        return errno.ENOENT
    return next((number for number in _IN_WORDS if os.strerror(number) in text), None)


def _path_in(text: str) -> str | None:
    """Return the last path that a text quotes: TensorStore names the file after its folder."""
    paths = [quoted or bare for quoted, bare in _PATH.findall(text)]
    return paths[-1] if paths else None
