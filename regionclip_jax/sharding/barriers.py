"""Barriers between the processes of one run; with one process they do nothing.

Collectives on devices wait too, but Gloo (for CPUs) gives up after 30 seconds. A slow disk, or a
compilation that only one process lacks in its cache, takes longer. JAX's coordination service waits
up to the limit below, and ends all processes when one has died. JAX has no public function for it;
Orbax has.
"""

import itertools
from collections.abc import Callable

import jax
from orbax.checkpoint.multihost import get_barrier_sync_fn

_LONGEST_MILLISECONDS = 24 * 3600 * 1000
_number = itertools.count()


def barrier(what: str) -> None:
    """Wait until every process has reached ``what``, such as "wrote the images"."""
    if jax.process_count() > 1:
        # All processes reach the same barriers in the same order; a name is valid once.
        name = f"regionclip_jax {next(_number)}: {what}"
        get_barrier_sync_fn()(key=name, timeout_ms=_LONGEST_MILLISECONDS)


def compile_barrier(jitted: Callable) -> Callable:
    """Wrap a jitted function: no process runs it before all have compiled it for its shapes."""
    if jax.process_count() == 1:
        return jitted
    compiled = set()

    def run(*arguments):
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        if shapes not in compiled:
            jitted.lower(*arguments).compile()
            barrier("compiled a step")
            compiled.add(shapes)
        return jitted(*arguments)

    return run
