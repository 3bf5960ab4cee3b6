"""Unpickler that runs no code from a file, in time and memory linear in the file.

It derives from the standard library's Python implementation, and replaces the opcodes that call,
copy or hash. A pickle can name one object many times, so these could take exponential time: the
hash of a tuple that holds one tuple twice, that again one twice, and so on.
"""

import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.zip_archives import damaged
from regionclip_jax.untrusted import reason, short

# Opcodes, and entries of copied dicts. Checkpoints of CLIPs have some ten thousand.
MAX_STEPS = 1_000_000
_MAX_ARGUMENTS = 16
_MAX_KEY_LENGTH = 1000
# Bytes that are read without a look at the rest of the file, which takes a system call.
_ALWAYS_READ = 2**16
# NumPy's limits of a shape.
_MAX_DIMS, _MAX_INDEX = 64, 2**63 - 1
# Errors of the standard unpickler for a hostile or broken pickle.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    struct.error,
    TypeError,
    ValueError,
)
# Nothing in a checkpoint needs these: old classes, extensions, text ids, buffers of another file.
_REFUSED = (
    pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
    pickle.PERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
)  # fmt: skip


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickler of what ``allowed`` lists, for one ``load``.

    Args:
        path: for errors.
        file: read from its position.
        size: bytes of ``file``.
        encoding: of the strings of Python 2.
    """

    # Functions, and classes with a method ``set_state`` that takes the place of __setstate__.
    allowed: dict[str, object] = {}

    def __init__(self, path: Path, file: BinaryIO, size: int, *, encoding: str):
        super().__init__(_WithoutOverrun(file, size), encoding=encoding)
        self.path = path
        self._steps = 0
        self.dispatch = _Counted(_OPCODES, self._spend)

    def find_class(self, module: str, name: str):
        full_name = f"{module}.{name}"
        if full_name == "collections.OrderedDict":
            return self._ordered_dict
        if full_name in self.allowed:
            return self.allowed[full_name]
        raise CheckpointMismatch(
            f"{self.path}: refused: its pickle asks for {full_name[:200]}, which is not part of a "
            "tensor, and to load it could run code; if you trust the file, open it with torch "
            "where that is safe and save its tensors alone: torch.save({'model': state_dict}, path)"
        )

    def require_key(self, key: Any) -> None:
        """Refuse a key that takes long to hash or to compare."""
        long = type(key) in (str, bytes) and len(key) > _MAX_KEY_LENGTH
        if long or not isinstance(key, str | bytes | int | float | None):
            raise pickle.UnpicklingError(f"a key {short(key)}")
        if isinstance(key, int) and key.bit_length() > 64:
            raise pickle.UnpicklingError(f"a key {short(key)}")

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise CheckpointMismatch(
                f"{self.path}: expected a pickle of at most {MAX_STEPS:,} steps, as the tensors of "
                "a model need, found more; save them alone: torch.save({'model': state_dict}, path)"
            )

    def _ordered_dict(self, pairs=()) -> dict:
        """Python 2 gives its pairs as an argument, later versions set items."""
        if not isinstance(pairs, list | tuple):
            raise pickle.UnpicklingError(f"an ordered dict of {short(pairs)}")
        self._spend(len(pairs))
        entries: dict = {}
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise pickle.UnpicklingError(f"an ordered dict with the entry {short(pair)}")
            self._set(entries, *pair)
        return entries

    def _set(self, entries: Any, key: Any, value: Any) -> None:
        if type(entries) is not dict:
            raise pickle.UnpicklingError(f"an item of {short(entries)}")
        self.require_key(key)
        entries[key] = value

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], key, value)

    def load_setitems(self):
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(self.stack[-1], key, value)

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(self.stack[-1], key, value)

    def load_appends(self):
        self._extend(self.pop_mark())

    def load_append(self):
        self._extend([self.stack.pop()])

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f"items of {short(self.stack[-1])}")
        self.stack[-1].extend(items)

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"a call with {short(arguments)}")
        self.append(function(*arguments))

    def load_newobj(self):
        arguments, kind = self.stack.pop(), self.stack.pop()
        if arguments != () or not hasattr(kind, "set_state"):
            raise pickle.UnpicklingError(f"an object of {short(kind)} from {short(arguments)}")
        self.append(kind())

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        # The attributes of an ordered dict, such as torch's ``_metadata``, are not needed.
        if type(target) is not dict:
            if isinstance(target, type) or not hasattr(target, "set_state"):
                raise pickle.UnpicklingError(f"a state of {short(target)}")
            target.set_state(state)


_OPCODES = RestrictedUnpickler.dispatch | {
    pickle.SETITEM[0]: RestrictedUnpickler.load_setitem,
    pickle.SETITEMS[0]: RestrictedUnpickler.load_setitems,
    pickle.DICT[0]: RestrictedUnpickler.load_dict,
    pickle.APPEND[0]: RestrictedUnpickler.load_append,
    pickle.APPENDS[0]: RestrictedUnpickler.load_appends,
    # A set becomes a list: no item is hashed.
    pickle.EMPTY_SET[0]: RestrictedUnpickler.load_empty_list,
    pickle.ADDITEMS[0]: RestrictedUnpickler.load_appends,
    pickle.FROZENSET[0]: RestrictedUnpickler.load_list,
    pickle.REDUCE[0]: RestrictedUnpickler.load_reduce,
    pickle.NEWOBJ[0]: RestrictedUnpickler.load_newobj,
    pickle.BUILD[0]: RestrictedUnpickler.load_build,
    # The standard one allocates any size that a file states.
    pickle.BYTEARRAY8[0]: RestrictedUnpickler.load_binbytes8,
}
for _opcode in _REFUSED:
    del _OPCODES[_opcode[0]]


class _Counted:
    """Table of opcodes that counts every look-up."""

    def __init__(self, table: dict, spend):
        self._table, self._spend = table, spend

    def __getitem__(self, opcode: int):
        self._spend(1)
        if opcode not in self._table:
            raise pickle.UnpicklingError(f"the opcode {bytes([opcode])!r}")
        return self._table[opcode]


class _WithoutOverrun:
    """File whose reads state no more than its rest, which a read would allocate."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > _ALWAYS_READ and num_bytes > self._size - self._file.tell():
            raise EOFError(f"{num_bytes} bytes are stated, and fewer are left")
        return self._file.read(num_bytes)


def is_sizes(values: Any) -> bool:
    """Return True for the sizes, strides or offset of an array: few whole numbers of 64 bits."""
    return (
        isinstance(values, tuple | list)
        and len(values) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n <= _MAX_INDEX for n in values)
    )


def load(unpickler: RestrictedUnpickler) -> Any:
    """Return the object of the pickle.

    Raises:
        CheckpointMismatch: the pickle is damaged, names what is not allowed, or has more than
            ``MAX_STEPS``.
    """
    try:
        return unpickler.load()
    except CheckpointMismatch:
        raise
    except _PICKLE_ERRORS as error:
        what = f"its pickle does not load ({reason(error)})"
        raise damaged(unpickler.path, what) from error
