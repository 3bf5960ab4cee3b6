"""How a run ends when it is told to: SIGTERM from a scheduler, Ctrl-C from a person.

There are two manners. Between steps of a training the step in progress is finished and saved
(``stop_requests``). Everywhere else, while a program loads, compiles or evaluates, there is nothing
that is not on disk already and every file is written whole or not at all, so the process just ends
(``end_at_once``). Either way the same command goes on from the last checkpoint.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN = "start the same command again to continue"


class Preempted(Exception):
    """The run was asked to stop by ``number`` and stopped cleanly after ``step`` updates."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM):
        super().__init__(f"stopped by {number.name} after step {step}, which is saved; {_AGAIN}")
        self.step = step
        self.number = number


def exit_status(number: int, preempted_status: int) -> int:
    """Of a run stopped by a signal; after Ctrl-C the shell's 130, which ends a script around it."""
    return 128 + number if number == signal.SIGINT else preempted_status


def end_at_once(preempted_status: int) -> None:
    """From now on SIGTERM and Ctrl-C end the process within a moment, saying what to do.

    Python runs the handler of a signal between two instructions of the main thread, and compiling a
    large program is one instruction of minutes. So a thread listens as well, at the pipe that
    Python writes each signal to while it arrives.

    With several processes JAX's preemption service takes SIGTERM over (``stop_requests``).

    Args:
        preempted_status: the exit status after SIGTERM.
    """
    leaving = threading.Lock()

    def leave(number, frame=None):
        if not leaving.acquire(blocking=False):
            return
        name = signal.Signals(number).name
        # Not print: the thread that was interrupted may hold the lock of sys.stderr.
        said = f"regionclip_jax: stopped by {name} outside of training steps; {_AGAIN}\n"
        os.write(2, said.encode())
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(exit_status(number, preempted_status))

    def listen():
        while True:
            (number,) = os.read(receiving, 1)
            # In a training the handler is another one, and the step's end will be soon enough.
            if signal.getsignal(number) is leave:
                leave(number)

    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    signal.set_wakeup_fd(sending)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    for number in _SIGNALS:
        signal.signal(number, leave)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], signal.Signals | None]]:
    """While in here SIGTERM and the first Ctrl-C only ask to stop; a second Ctrl-C is meant.

    Several processes must stop after the same step: there JAX's preemption service, which catches
    SIGTERM in C++, is asked. A Python handler would take the signal away from it.

    Yields:
        A function of the number of updates done -> the signal to stop for, or None.
    """
    import jax  # not above: main calls end_at_once before it imports anything heavy
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        yield (
            lambda step: (
                signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
            )
        )
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: None  # Python delivers signals to the main thread only
        return
    received = []
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number, frame):
        received.append(signal.Signals(number))
        os.write(2, f"regionclip_jax: {received[0].name}: stops after this step\n".encode())
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    try:
        for number in _SIGNALS:
            signal.signal(number, note)
        yield lambda step: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])  # it came after the last look
