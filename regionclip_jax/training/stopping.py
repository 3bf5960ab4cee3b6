"""Stop a run on SIGTERM from a scheduler or Ctrl-C from a person.

During training steps, the step in progress is finished and saved (``stop_requests``). Elsewhere,
while a program loads, compiles or evaluates, the process ends at once (``end_at_once``): everything
is on disk already, and files are written atomically. In both cases the same command continues from
the last checkpoint. While the interpreter ends, signals are ignored: the work is done, and the
status is decided.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN = "start the same command again to continue"


class Preempted(Exception):
    """The signal ``number`` stopped the run cleanly after ``step`` updates."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM):
        super().__init__(f"stopped by {number.name} after step {step}, which is saved; {_AGAIN}")
        self.step = step
        self.number = number


def exit_status(number: int, preempted_status: int) -> int:
    """Return the exit status after a signal; 130 after Ctrl-C, which also ends a calling script."""
    return 128 + number if number == signal.SIGINT else preempted_status


def end_at_once(preempted_status: int) -> None:
    """Let SIGTERM and Ctrl-C end the process at once, with a message.

    With several processes, JAX's preemption service takes over SIGTERM (``stop_requests``).

    Args:
        preempted_status: exit status after SIGTERM.
    """

    def farewell(number: signal.Signals) -> int:
        # Not print: the interrupted thread may hold the lock of sys.stderr.
        said = f"regionclip_jax: stopped by {number.name} outside of training steps; {_AGAIN}\n"
        os.write(2, said.encode())
        return exit_status(number, preempted_status)

    _listen(farewell)


@contextlib.contextmanager
def ending_at_once(farewell: Callable[[signal.Signals], int]) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the process at once while the context is open.

    Args:
        farewell: called in a thread of its own; returns the exit status.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    stop_listening = _listen(farewell)
    try:
        yield
    finally:
        stop_listening()


def _listen(farewell: Callable[[signal.Signals], int]) -> Callable[[], None]:
    """End the process with the status of ``farewell`` at a signal; return the way back.

    Python runs a signal handler between two instructions of the main thread, and compiling a large
    program is one instruction of minutes. So a thread reads the wake-up pipe, to which Python
    writes each signal on arrival.
    """

    def handler(number, frame):
        """Mark that the thread, which compares this function, ends the process."""

    def listen():
        while number := os.read(receiving, 1):
            # During training steps the handler is another one, which waits for the step.
            if signal.getsignal(number[0]) is handler:
                status = farewell(signal.Signals(number[0]))
                for child in multiprocessing.active_children():
                    child.terminate()
                os._exit(status)
        os.close(receiving)

    def stop_listening():
        for number, previous in handlers.items():
            signal.signal(number, previous)
        signal.set_wakeup_fd(wakeup)
        os.close(sending)
        listener.join()  # if it is ending the process, with the status of its signal

    # The interpreter takes half a second to end, and would give signals back to the system, which
    # ends the process with another status.
    atexit.unregister(_ignore_signals)
    atexit.register(_ignore_signals)
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    wakeup = signal.set_wakeup_fd(sending)
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    handlers = {number: signal.signal(number, handler) for number in _SIGNALS}
    return stop_listening


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Let SIGTERM and the first Ctrl-C request a stop; a second Ctrl-C interrupts.

    Several processes must stop after the same step, so they query JAX's preemption service. It
    catches SIGTERM in C++; a Python handler would replace it.

    Yields:
        A function: number of updates done -> received signal, or None.
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
        signal.raise_signal(received[0])  # it came after the last check
