"""Parse the text of a compiled program (``compiled.as_text()``): operations, loops, shapes."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program.

    ``shape`` and ``rest`` (attributes: called computations, name in the source) are unparsed text.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self) -> list[str]:
        """Return the names of the called computations, without conditions of loops."""
        return [
            name
            for single, several in _CALLED.findall(self.rest)
            for name in ([single] if single else several.replace("%", "").split(", "))
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """Compiled program: its computations by name, and the name of the entry."""

    entry: str
    computations: dict[str, dict[str, Operation]]

    def runs(self, into_fusions: bool = False) -> Iterator[tuple[str, Operation, int]]:
        """Yield (computation, operation, number of runs in a step) of all operations.

        A loop whose end depends on data counts once, as do all branches of a conditional.
        """

        def visit(computation: str, times: int):
            for operation in self.computations[computation].values():
                yield computation, operation, times
                if operation.kind == "fusion" and not into_fusions:
                    continue
                trips = self.trips(operation) or 1 if operation.kind == "while" else 1
                for name in operation.called():
                    if name in self.computations:
                        yield from visit(name, times * trips)

        yield from visit(self.entry, 1)

    def trips(self, loop: Operation) -> int | None:
        """Return the trip count of a loop: the stated number, or the limit of its counter.

        The TPU compiler states no number. None if the end depends on data.
        """
        if stated := _TRIPS.search(loop.rest):
            return int(stated[1])
        named = _CONDITION.search(loop.rest)
        condition = self.computations.get(named[1], {}).values() if named else ()
        limits = [op.operands[0] for op in condition if op.kind == "constant"]
        counts = any(op.is_root and "direction=LT" in op.rest for op in condition)
        return int(limits[0]) if counts and len(limits) == 1 else None


def parse_program(text: str) -> Program:
    """Parse ``compiled.as_text()``.

    Raises:
        ValueError: not the text of a program.
    """
    computations: dict[str, dict[str, Operation]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (operation := _operation(line)):
            current[operation.name] = operation
    if entry is None:
        raise ValueError("expected the text of a compiled program, found none with an ENTRY")
    return Program(entry, computations)


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_KIND = re.compile(r" ?([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")


def _operation(line: str) -> Operation | None:
    if not (named := _NAME.match(line)):
        return None
    line = _COMMENT.sub("", line)
    start = named.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    kind = _KIND.match(line, end)
    if kind is None:
        return None
    close = _closing(line, kind.end() - 1)
    operands = [part.strip().lstrip("%") for part in line[kind.end() : close - 1].split(",")]
    # Some compilers write the shape of an operand before its name.
    operands = tuple(part.split("%")[-1] for part in operands if part)
    return Operation(
        named[2], line[start:end], kind[1], operands, line[close:], named[1] is not None
    )


def _closing(line: str, start: int) -> int:
    """Return the position after the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis stays open in {line[:200]!r}")


# --- bytes of arrays ------------------------------------------------------------------------------

_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\(\d+\)")


def array_bytes(shape: str) -> list[int]:
    """Return the bytes of each array of a shape, without the padding of tiles."""
    return [_elements(match) * _width(match) for match in find_arrays(shape)]


@functools.cache
def memory_bytes(shape: str) -> int:
    """Return the bytes of a shape's arrays in the device's main memory, with padded tiles.

    Arrays that the compiler keeps on the chip count zero.
    """
    return sum(
        _tiled_elements(match) * _width(match) for match in find_arrays(shape) if not on_chip(match)
    )


def on_chip(match: re.Match) -> bool:
    return _SPACE.search(match[3] or "") is not None


def find_arrays(shape: str) -> list[re.Match]:
    return [match for match in _ARRAY.finditer(shape) if match[1] != "token"]


def _width(match: re.Match) -> int:
    return 1 if match[1] == "pred" else max(int(re.sub(r"\D", "", match[1])), 8) // 8


def _sides(match: re.Match) -> list[int]:
    return [int(side) for side in match[2].split(",") if side]


def _elements(match: re.Match) -> int:
    return math.prod(_sides(match))


def _tiled_elements(match: re.Match) -> int:
    sides, layout = _sides(match), match[3] or ""
    tile = _TILE.search(layout)
    if tile is None or not sides:
        return math.prod(sides)
    order = [int(axis) for axis in layout.split(":")[0].split(",") if axis]
    sides = [sides[axis] for axis in reversed(order)]
    steps = [int(step) for step in tile[1].split(",")][-len(sides) :]
    whole = [1] * (len(sides) - len(steps)) + steps
    return math.prod(-(-side // step) * step for side, step in zip(sides, whole, strict=True))
