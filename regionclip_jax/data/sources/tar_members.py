"""Read the headers of a tar by seeking from one to the next.

The standard library's ``tarfile`` makes an object of every member and is many times slower: for
the million members of a data set this takes minutes at every start.
"""

import os
import pathlib
import re
import zlib
from typing import NamedTuple

from regionclip_jax.untrusted import open_regular

_BLOCK = 512
_EMPTY = bytes(_BLOCK)
# A longer name or extended header counts as damaged.
_LONGEST_HEADER = 1 << 20
_LENGTH = re.compile(rb"(\d{1,9}) ")
_FILES, _LONG_NAME, _EXTENDED = (b"0", b"\0", b"7"), b"L", b"x"


class Member(NamedTuple):
    """File in a tar: ``size`` bytes from ``offset``."""

    name: str
    offset: int
    size: int


def read_members(path: pathlib.Path) -> tuple[list[Member], str | None]:
    """Read the files in a tar, in order, up to its end or its first damage.

    Supports ustar, GNU's long names and pax headers of single files.

    Returns:
        The complete members; and the problem of the tar, or None.
    """
    members: list[Member] = []
    position = 0
    # Long name and pax header of the next member.
    name: bytes | None = None
    extended: dict[bytes, bytes] = {}
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        while True:
            header = os.pread(file.fileno(), _BLOCK, position)
            if header == _EMPTY:
                return members, None
            if len(header) < _BLOCK:
                return members, f"ends at byte {length} without the mark of an end"
            try:
                size = _size(header)
                size = int(extended.get(b"size", size))
            except ValueError:
                return members, f"has no header at byte {position}"
            kind, start = header[156:157], position + _BLOCK
            if size < 0 or start + size > length:
                return members, f"ends at byte {length} within a member"
            if kind in (_LONG_NAME, _EXTENDED):
                if size > _LONGEST_HEADER:
                    return members, f"has no header at byte {position}"
                content = os.pread(file.fileno(), size, start)
                if kind == _LONG_NAME:
                    name = content.rstrip(b"\0")
                else:
                    extended = _parse_extended(content)
            else:
                if kind in _FILES:
                    found = extended.get(b"path") or name or _name(header)
                    members.append(Member(found.decode("utf-8", "surrogateescape"), start, size))
                name, extended = None, {}
            position = start + -(-size // _BLOCK) * _BLOCK


def _size(header: bytes) -> int:
    """Return the size of a member after checking its header.

    Raises:
        ValueError: a wrong checksum, or a field that is not a number.
    """
    expected = _number(header[148:156])
    # The checksum is the sum of all bytes, with its own eight bytes as blanks. The low half of
    # Adler-32 is one more than that sum, modulo 65521, and far faster than Python's own sum.
    blanked = header[:148] + b"        " + header[156:]
    if zlib.adler32(blanked) & 0xFFFF != (1 + expected) % 65521:
        raise ValueError("checksum")
    return _number(header[124:136])


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's binary form of numbers too large for octal digits
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _parse_extended(content: bytes) -> dict[bytes, bytes]:
    """Parse pax records ``LENGTH KEY=VALUE`` up to the first malformed one."""
    found: dict[bytes, bytes] = {}
    start = 0
    while match := _LENGTH.match(content, start):
        end = start + int(match[1])
        if not match.end() < end <= len(content):
            break
        key, _, value = content[match.end() : end - 1].partition(b"=")
        found[key] = value
        start = end
    return found
