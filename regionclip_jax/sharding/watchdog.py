"""Watch over the other processes of a run, and end this one if one of them is lost.

JAX notices after up to 100 seconds that a process was killed or is frozen, and aborts the others
with a hundred lines. So all processes meet at a barrier every few seconds, in a thread of their
own. A process that does not come is lost, and ends the run with one line and a status on which
schedulers start it again.
"""

import atexit
import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator

import jax
from orbax.checkpoint.multihost import get_barrier_sync_fn

from regionclip_jax.failures import ExitStatus, explain
from regionclip_jax.sharding.barriers import barrier

# A lost process ends the others after the sum at most, before JAX's own 50 to 100 seconds. Process
# 0 says which process is late; if it does not answer, it is lost itself.
INTERVAL_SECONDS = 5
PATIENCE_SECONDS = 30
ANSWER_SECONDS = 5
# Processes with the same error reach the same barrier at nearly the same time.
_SECONDS_TO_LEAVE = 10
# An error of a collective may be that of a lost process, whose name the watchdog then knows.
_SECONDS_TO_EXPLAIN = INTERVAL_SECONDS + PATIENCE_SECONDS + 2 * ANSWER_SECONDS

_leaving = threading.Event()
_ending = threading.Lock()  # never released: the first of several threads ends the process


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Watch over the processes of a run, if there are several, while the context is open.

    All processes leave the context together. One that leaves with an error alone ends without
    JAX's shutdown, which would wait for the others for minutes. A failure of the machine ends a
    process without the interpreter's: what Orbax gave up would print an error for every array.
    """
    several = jax.process_count() > 1
    if several:
        threading.Thread(target=_watch, name="watchdog", daemon=True).start()
    try:
        yield
        barrier("the end of the run")
    except Exception as error:
        status, message = explain(error) or (ExitStatus.ERROR, None)
        if several:
            ends_at_once = not _all_leave(_SECONDS_TO_LEAVE if message else _SECONDS_TO_EXPLAIN)
        else:
            ends_at_once = status != ExitStatus.ERROR
        if ends_at_once:
            # Called before the functions that are registered already, such as JAX's.
            atexit.register(_exit, status)
        raise
    finally:
        _leaving.set()


def end_as_lost(who: str) -> None:
    """End this process with one line, unless the run is ending.

    Args:
        who: names the lost process.
    """
    if _leaving.is_set() or not _ending.acquire(blocking=False):
        return
    # Not print: the main thread may hold the lock of sys.stderr.
    line = (
        f"regionclip_jax: {who} of the run was lost: killed, frozen, unreachable, or ended by an "
        "error that its own log has; start the same command again to continue from the last "
        "checkpoint\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    _exit(ExitStatus.LOST_PROCESS)


def _watch() -> None:
    for number in itertools.count():
        no_answer = threading.Timer(PATIENCE_SECONDS + ANSWER_SECONDS, end_as_lost, ["process 0"])
        no_answer.daemon = True
        no_answer.start()
        try:
            get_barrier_sync_fn()(
                key=f"regionclip_jax alive {number}", timeout_ms=PATIENCE_SECONDS * 1000
            )
        except Exception as error:  # jaxlib has several types
            end_as_lost(name_missing(str(error)))
            return
        finally:
            no_answer.cancel()
        if _leaving.wait(INTERVAL_SECONDS):
            return


def name_missing(text: str) -> str:
    """Return the names of the processes that a barrier's error names."""
    # The error lists one process a line: its number, or a name that ends in it.
    _, _, names = text.partition("task names:\n")
    numbers = [name.rpartition(":")[2] for name in names.partition("\n\n")[0].split()]
    return f"process {', '.join(numbers)}" if numbers else "another process"


def _all_leave(seconds: int) -> bool:
    try:
        get_barrier_sync_fn()(key="regionclip_jax leaves", timeout_ms=seconds * 1000)
    except Exception:  # jaxlib has several types
        return False
    return True


def _exit(status: int) -> None:
    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
