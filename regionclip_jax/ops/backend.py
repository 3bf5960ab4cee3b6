"""The backend that a program is traced for.

Seven choices depend on it: RoIAlign's reads, NMS tiles, unrolled chunks, the sum of a kernel's
gradient, pooling, a stem's cells in channels, and attention in chunks. The target is the default
backend, unless a program is compiled ahead of time for another one.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def target_backend() -> str:
    """Return the backend to trace for: ``cpu``, ``gpu`` or ``tpu``."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(backend: str) -> Iterator[None]:
    """Set the target backend of every trace in this context.

    Functions that were traced before keep their backend.
    """
    token = _TARGET.set(backend)
    try:
        yield
    finally:
        _TARGET.reset(token)
