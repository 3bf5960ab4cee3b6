"""Processes of one run wait for one another; with one process there is nothing to wait for.

Devices wait for each other anyway, but not for long: Gloo, which joins CPUs, gives up after 30
seconds, and a slow disk or a program that the compilation cache of one process lacks takes longer.
JAX's coordination service waits as long as it takes, and ends all processes when one has died.
"""

import itertools
from collections.abc import Callable

import jax

# JAX has no public barrier that leaves the devices alone; Orbax takes the same one.
from jax._src import distributed

_LONGEST_MILLISECONDS = 24 * 3600 * 1000
_number = itertools.count()


def wait_for_all(what: str) -> None:
    """Returns when every process has come to ``what``, such as "drew the pictures"."""
    if jax.process_count() > 1:
        # All come to the same barriers in the same order; a name serves once.
        name = f"regionclip_jax {next(_number)}: {what}"
        distributed.global_state.client.wait_at_barrier(name, _LONGEST_MILLISECONDS)


def start_together(jitted: Callable) -> Callable:
    """A jitted function that no process runs before all have compiled it for the same shapes."""
    if jax.process_count() == 1:
        return jitted
    compiled = set()

    def run(*arguments):
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        if shapes not in compiled:
            jitted.lower(*arguments).compile()
            wait_for_all("compiled a step")
            compiled.add(shapes)
        return jitted(*arguments)

    return run
