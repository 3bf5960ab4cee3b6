"""Initial parameters: random, or strictly from another model's tree.

Most reports of "zero AP" with the reference come from weights that were silently not loaded. Here a
wrong name or shape ends the run with the list of all mismatches.
"""

from collections.abc import Callable, Hashable

import jax
import numpy as np
from absl import logging

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten

_LISTED = 10


def draw_parameters(
    initialize: Callable[[Hashable, jax.Array], dict], config: Hashable, key: jax.Array
) -> dict:
    """Run ``initialize(config, key)`` as one program that compiles fast.

    Without jit, every shape compiles its own programs, which takes many seconds even for a small
    model. On a CPU, optimizing a program that runs once takes longer than running it unoptimized.
    Values differ from an eager call by rounding.
    """
    if isinstance(key, jax.core.Tracer):
        # Called by eval_shape: only the outermost program takes compiler options.
        return initialize(config, key)
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(initialize, static_argnums=0, compiler_options=options)(config, key)


def merge_parameters(target_abstract, source, where: str):
    """Arrange ``source``'s arrays in the structure and dtypes of ``target_abstract``.

    Args:
        target_abstract: nested dict of ``jax.ShapeDtypeStruct`` (or arrays) of the model.
        source: nested dict of arrays.
        where: file or directory of ``source``, for messages.

    Returns:
        A tree like ``target_abstract`` with the arrays of ``source``, cast to the target's dtype of
        the same kind (float16 to float32, for example).

    Raises:
        CheckpointMismatch: lists up to 10 each of the missing names, the unused names and the
            tensors with another shape or kind.
    """
    wanted, given = flatten(target_abstract), flatten(source)
    missing = [path for path in wanted if path not in given]
    unused = [path for path in given if path not in wanted]
    unlike = []
    for path in wanted.keys() & given.keys():
        want, have = wanted[path], given[path]
        if tuple(want.shape) != tuple(have.shape) or not _same_kind(want.dtype, have.dtype):
            unlike.append(f"{path} (expected {_describe(want)}, found {_describe(have)})")
    problems = [
        f"{len(names)} {what}: {_some(sorted(names))}"
        for what, names in (
            ("missing there", missing),
            ("there but not in the model", unused),
            ("of another shape or kind", unlike),
        )
        if names
    ]
    if problems:
        raise CheckpointMismatch(
            f"{where}: its parameters do not fit the model ({len(wanted)} tensors). "
            f"{'. '.join(problems)}. Choose the architecture the file was written with, or "
            "convert the file again."
        )
    logging.info("%s: all %d tensors of the model found", where, len(wanted))
    leaves = [given[path].astype(want.dtype) for path, want in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(target_abstract), leaves)


def _same_kind(want, have) -> bool:
    kinds = (jax.numpy.floating, jax.numpy.integer, np.bool_)
    return any(
        jax.numpy.issubdtype(want, kind) and jax.numpy.issubdtype(have, kind) for kind in kinds
    )


def _describe(leaf) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
