"""Traffic of a compiled program: between chips, between chip and memory; and its launches.

A compiler reports a program's memory, but not its traffic: on TPUs only a sum that counts a loop's
body once, on GPUs no number. Here every operation is counted as often as it runs.
"""

import math
import re
from typing import NamedTuple

from regionclip_jax.compile_report.program_text import (
    Operation,
    Program,
    array_bytes,
    find_arrays,
    memory_bytes,
    on_chip,
)


class Collective(NamedTuple):
    """All collectives of a kind in one step, on one chip."""

    count: int
    # Bytes of the results; for scatters, bytes of the inputs.
    num_bytes: int
    # Bytes that one chip sends in ring algorithms.
    sent_bytes: float


_SHARE_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


def collectives(program: Program, num_devices: int) -> dict[str, Collective]:
    """Return the collectives of a program by kind; those in loops count as often as they run.

    Args:
        num_devices: group size of operations that do not state it.
    """
    found: dict[str, list[tuple[int, float, float]]] = {}
    for _, operation, times in program.runs(into_fusions=True):
        kind = operation.kind.removesuffix("-start")
        if kind not in _SHARE_SENT:
            continue
        group = _group_size(operation.rest, num_devices)
        sizes = array_bytes(operation.shape)
        # The shape of a start operation holds the inputs before the outputs.
        names_both = operation.kind != kind and kind != "all-reduce"
        size = max(sizes, default=0) if names_both else sum(sizes)
        if kind == "reduce-scatter":
            size *= group
        sent = size * _SHARE_SENT[kind](group)
        found.setdefault(kind, []).append((times, times * size, times * sent))
    return {
        kind: Collective(*(sum(column) for column in zip(*rows, strict=True)))
        for kind, rows in sorted(found.items())
    }


def _group_size(rest: str, num_devices: int) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    # GPU compilers write the axes of a mesh, and the axes that take part.
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sides = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(sides[axis.strip()]) for axis in match[2].split(","))
    return num_devices


# --- between chip and memory ----------------------------------------------------------------------

# Operations without work or traffic, and operations that run a computation counted by itself.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "optimization-barrier",
    "while",
    "conditional",
    "call",
    "domain",
}
_WORKLESS = re.compile(r'custom_call_target="(?:AllocateBuffer|ConcatBitcast|Assume\w+)"')
# Limit of operations searched for the user of an unnamed one.
_SEARCHED = 64
_LIBRARY = re.compile(r'custom_call_target="__cu(?:blas|dnn)')
_SLICES = {"dynamic-slice", "slice", "gather"}


def memory_traffic(program: Program) -> dict[str, int]:
    """Return the bytes that operations read and write, by part of the step, largest first.

    Operations count as often as they run. Slices and in-place updates count only the slice. No
    cache is assumed between operations; intermediate values of a fusion are free. Unnamed
    prefetches count for the part that uses them.
    """
    found: dict[str, int] = {}
    users = {name: _users(scope) for name, scope in program.computations.items()}
    for computation, operation, times in program.runs():
        if moved := times * _moved(program, computation, operation):
            part = part_of(_named(operation, users[computation]))
            found[part] = found.get(part, 0) + moved
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _users(scope: dict[str, Operation]) -> dict[str, list[Operation]]:
    users: dict[str, list[Operation]] = {}
    for operation in scope.values():
        for name in operation.operands:
            users.setdefault(name, []).append(operation)
    return users


def _named(operation: Operation, users: dict[str, list[Operation]]) -> Operation:
    """Return the operation, or the first of its users that has a source name."""
    found, seen = [operation], 0
    while seen < len(found) <= _SEARCHED:
        if _OP_NAME.search(found[seen].rest):
            return found[seen]
        found += users.get(found[seen].name, [])
        seen += 1
    return operation


def _moved(program: Program, computation: str, operation: Operation) -> int:
    if operation.kind in _FREE or operation.kind.endswith("-done"):
        return 0
    if operation.kind.startswith("async") or _WORKLESS.search(operation.rest):
        return 0
    scope = program.computations[computation]
    shapes = [scope[name].shape for name in operation.operands if name in scope]
    out = memory_bytes(operation.shape) - _workspace(operation)
    if operation.kind in _SLICES:
        return 2 * out
    if operation.kind == "dynamic-update-slice":
        return 2 * memory_bytes(shapes[1])
    if operation.kind.endswith("slice-start"):
        source, result = find_arrays(operation.shape)[:2]
        return array_bytes(result[0])[0] * sum(not on_chip(array) for array in (source, result))
    if operation.kind.endswith("-start"):
        # Its shape holds the input and the output.
        return out
    if operation.kind == "fusion":
        return _moved_by_fusion(program.computations.get(operation.called()[0], {}), shapes, out)
    return out + sum(map(memory_bytes, shapes))


def _workspace(operation: Operation) -> int:
    """Return the bytes of the workspace of a GPU library call: its last result."""
    if operation.kind != "custom-call" or not _LIBRARY.search(operation.rest):
        return 0
    last = find_arrays(operation.shape)[-1]
    return array_bytes(last[0])[0] if last[1] in ("s8", "u8") else 0


def _moved_by_fusion(inside: dict[str, Operation], shapes: list[str], out: int) -> int:
    users, total = _users(inside), out
    for operation in inside.values():
        if operation.kind != "parameter":
            continue
        shape = shapes[int(operation.operands[0])]
        whole = memory_bytes(shape)
        reading = users.get(operation.name, [])
        if reading and all(_reads_a_slice(user, operation) for user in reading):
            whole = min(whole, sum(memory_bytes(user.shape) for user in reading))
        elif len(reading) == 1 and _writes_into(reading[0], operation):
            # In place: only the slice is read and written.
            slice_ = memory_bytes(inside[reading[0].operands[1]].shape)
            total += slice_ - whole
            whole = 0
        total += whole
    return max(total, 0)


def _reads_a_slice(user: Operation, parameter: Operation) -> bool:
    return user.kind in _SLICES and user.operands[0] == parameter.name


def _writes_into(user: Operation, parameter: Operation) -> bool:
    return user.kind == "dynamic-update-slice" and user.operands[0] == parameter.name


_OP_NAME = re.compile(r'op_name="([^"]*)"')
_WRAPPED = re.compile(r"^(?:transpose|jvp|vmap|checkpoint)\((.*)\)$")
# Parts of a name that come from transformations.
_FRAMES = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "pjit", ""}


def part_of(operation: Operation) -> str:
    """Return the origin of an operation: up to three modules, and forward or backward."""
    named = _OP_NAME.search(operation.rest)
    if named is None:
        return "of the compiler"
    name = named[1]
    modules = []
    for piece in name.split("/")[:-1]:
        while wrapped := _WRAPPED.match(piece):
            piece = wrapped[1]
        if piece not in _FRAMES and not piece.startswith("jit("):
            modules.append(piece)
    if "rematted_computation" in name:
        when = "forward again"
    elif "transpose(" in name:
        when = "backward"
    elif "jvp(" in name:
        when = "forward, for gradients"
    else:
        when = "forward"
    return f"{'/'.join(modules[:3]) or 'step'} ({when})"


# --- launches -------------------------------------------------------------------------------------


class Launches(NamedTuple):
    """Launches on a GPU in one step."""

    # Kernels and library calls; loops whose end depends on data count once.
    kernels: int
    # Loops whose end depends on data: the host waits for the condition after each round.
    waiting_loops: int


def launches(program: Program) -> Launches:
    """Count the launches of a GPU program."""
    kernels = waiting = 0
    for _, operation, times in program.runs():
        if operation.kind == "while":
            waiting += times * (program.trips(operation) is None)
        elif operation.kind not in _FREE and not operation.kind.endswith("-done"):
            kernels += times
    return Launches(kernels, waiting)
