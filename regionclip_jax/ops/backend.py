"""Which kind of device a program is traced for.

Seven choices depend on it (how RoIAlign reads its map, how NMS takes its boxes, whether chunks are
unrolled, how a kernel's gradient is summed, how maps are pooled, whether a stem's cells lie in
channels, whether tokens attend in chunks). It is that of the devices that are there, unless a
program is compiled ahead of time for others.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def target_backend() -> str:
    """``cpu``, ``gpu`` or ``tpu``."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(backend: str) -> Iterator[None]:
    """What is traced within is for devices of this kind, wherever it is traced.

    Functions that are jitted already keep what they were traced for.
    """
    token = _TARGET.set(backend)
    try:
        yield
    finally:
        _TARGET.reset(token)
