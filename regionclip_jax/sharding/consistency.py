"""Consistency check across hosts of one run.

Processes that run different programs do not fail: they wait for each other without end, or train
something unintended. So facts that could differ between hosts are compared before compilation.
``multihost_utils.assert_equal`` compares arrays, and cannot name the key that differs. With one
process the checks do nothing.
"""

import contextlib
import hashlib
import json
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.files import locked_folder
from regionclip_jax.settings import UserError
from regionclip_jax.sharding.barriers import barrier
from regionclip_jax.sharding.global_arrays import gather_json


class InconsistentHosts(UserError):
    """Error: processes of one run have different recipes, data, or working directories."""


def require_consistent(facts: Mapping) -> None:
    """Compare JSON-able facts of all processes, first by a hash, then one by one if it differs.

    Raises:
        InconsistentHosts: in every process, with the first key that differs and its values.
    """
    if jax.process_count() == 1:
        return
    own = flat(json.loads(json.dumps(facts)))
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    if len(set(gather_json([digest]))) > 1:
        raise InconsistentHosts(first_difference(gather_json([own]), gather_json([_own_name()])))


def first_difference(facts: Sequence[Mapping[str, object]], names: Sequence[str]) -> str:
    """Describe the first key whose value in a process differs from that of the first process.

    Args:
        facts: of each process, flat.
        names: of the processes.

    Raises:
        ValueError: all facts are the same.
    """
    first = facts[0]
    for key in sorted(set().union(*facts)):
        for other, name in zip(facts, names, strict=True):
            values = [some.get(key, "absent") for some in (first, other)]
            if values[0] != values[1]:
                return (
                    f"{key}: {values[0]!r} in {names[0]}, {values[1]!r} in {name}; start all "
                    "processes of a run with the same recipe, flags and data"
                )
    raise ValueError("the facts of all processes are the same")


def require_shared(folder: Path) -> None:
    """Check that all processes see a file that the first process writes.

    Raises:
        InconsistentHosts: in every process, with the processes that do not see it.
    """
    if jax.process_count() == 1:
        return
    # A new name, so that no cache of a network file system has it as missing.
    (token, *_) = gather_json([secrets.token_hex(8)])
    path = folder / f".seen_by_all.{token}"
    if jax.process_index() == 0:
        path.touch()
    barrier("wrote a file for all to see")
    seen, names = gather_json([path.exists()]), gather_json([_own_name()])
    if jax.process_index() == 0:
        path.unlink()
    if not all(seen):
        raise InconsistentHosts(unshared(folder, seen, names))


def unshared(folder: Path, seen: Sequence[bool], names: Sequence[str]) -> str:
    """Describe the processes that do not see the first one's file."""
    blind = [name for name, sees in zip(names, seen, strict=True) if not sees]
    more = f" and {len(blind) - 3} more" if len(blind) > 3 else ""
    return (
        f"--workdir {folder}: what {names[0]} writes there is not seen by {', '.join(blind[:3])}"
        f"{more}; give a folder of a file system that all hosts share"
    )


@contextlib.contextmanager
def locked_workdir(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder in the first process, so that two runs never mix their files.

    Raises:
        FileExistsError: in every process, if another run holds the lock.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if jax.process_index() == 0:
            try:
                if not stack.enter_context(locked_folder(folder)):
                    logging.warning(
                        "--workdir %s: its file system has no locks; never start two runs there",
                        folder,
                    )
            except FileExistsError as error:
                problem = f"--workdir: {error}"
        if problem := gather_json([problem])[0]:
            raise FileExistsError(problem)
        yield


def _own_name() -> str:
    return f"process {jax.process_index()} ({socket.gethostname()})"


def flat(facts: object, prefix: str = "") -> dict[str, object]:
    """Flatten dicts and sequences to {"a.b.0": leaf}, so JSON's lists equal Python's tuples."""
    if isinstance(facts, dict) and facts:
        items = facts.items()
    elif isinstance(facts, list | tuple) and facts:
        items = enumerate(facts)
    else:
        return {prefix: list(facts) if isinstance(facts, tuple) else facts}
    leaves = {}
    for key, value in items:
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
