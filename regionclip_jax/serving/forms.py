"""Read the form of an upload: an image and words, in memory and within limits.

Starlette's own reader writes uploads to temporary files and decodes texts with the codec that the
client names. This one does neither.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from regionclip_jax.serving.limits import Limits, Refused
from regionclip_jax.text.names import check_names
from regionclip_jax.untrusted import reason, short

_FIELDS = ("image", "words")
_FORM = "multipart/form-data"
_USAGE = f"send {_FORM} with a file 'image' and a text 'words'"
_LONGEST_FILE_NAME = 200


@dataclasses.dataclass(frozen=True)
class Upload:
    """Upload of a client.

    Attributes:
        image: the encoded file.
        file_name: of the image, without folders.
        names: the words; none stands for the names of the model directory.
    """

    image: bytes
    file_name: str
    names: tuple[str, ...]


async def read_upload(request: Request, limits: Limits) -> Upload:
    """Read the form of a request.

    Raises:
        Refused: 400: not the form that is expected; 408: too slow; 413: too long; 415: no form;
            422: words that cannot be used.
        ClientDisconnect: the client closed the connection.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind.lower() != _FORM.encode():
        raise Refused(415, f"Content-Type: found {short(kind.decode('latin-1'))}; {_USAGE}")
    _require_length(request.headers, limits)
    try:
        fields = _Fields(options.get(b"boundary", b""), limits)
        async for some in _received(request, limits):
            fields.write(some)
    except FormParserError as error:
        raise Refused(400, f"the form is damaged ({reason(error)}); {_USAGE}") from error
    found = fields.end()
    if "image" not in found or not found["image"].content:
        raise Refused(400, f"found no image; {_USAGE}")
    image, words = found["image"], found.get("words")
    return Upload(
        bytes(image.content),
        plain_file_name(image.file_name),
        () if words is None else split_words(bytes(words.content), limits),
    )


def split_words(text: bytes, limits: Limits) -> tuple[str, ...]:
    """Return the names of a text: commas and ends of lines separate them.

    Raises:
        Refused: 422: no UTF-8, too many words, one that is too long, or as ``check_names``.
    """
    try:
        lines = text.decode().replace(",", "\n").splitlines()
    except UnicodeDecodeError:
        raise Refused(422, "words: expected UTF-8; write them again") from None
    names = [line.strip() for line in lines if line.strip()]
    if len(names) > limits.words:
        raise Refused(
            422, f"words: found {len(names)}, expected at most {limits.words}; leave some out"
        )
    longest = max(names, key=len, default="")
    if len(longest) > limits.word_characters:
        raise Refused(
            422,
            f"words: found one of {len(longest)} characters, expected at most "
            f"{limits.word_characters}; separate words with commas",
        )
    try:
        return check_names(names, "words") if names else ()
    except ValueError as error:
        raise Refused(422, str(error)) from error


def plain_file_name(name: str) -> str:
    """Return the last part of a path, printable and of limited length."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(character for character in last if character.isprintable())
    return printable[:_LONGEST_FILE_NAME].strip() or "image"


def _require_length(headers: Mapping[str, str], limits: Limits) -> None:
    # The parser of HTTP has checked the number. A body in chunks has none.
    if int(headers.get("content-length", 0)) > limits.body_bytes:
        raise _too_long(limits)


def _too_long(limits: Limits) -> Refused:
    size = f"{limits.body_bytes / 2**20:g} MiB"
    return Refused(
        413, f"the upload has more than {size}, expected at most these; shrink the image"
    )


async def _received(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the parts of a body."""
    parts = request.stream()
    deadline = asyncio.get_running_loop().time() + limits.upload_seconds
    length = 0
    while True:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(deadline, now + limits.idle_seconds)):
                some = await anext(parts, None)
        except TimeoutError:
            raise Refused(
                408,
                f"the upload did not arrive within {limits.upload_seconds:g} seconds, or stopped "
                f"for {limits.idle_seconds:g}; send it again, or a smaller image",
            ) from None
        if some is None:
            return
        length += len(some)
        if length > limits.body_bytes:
            raise _too_long(limits)
        yield some


@dataclasses.dataclass
class _Field:
    name: str
    file_name: str
    content: bytearray


class _Fields:
    """Parser of a form that keeps its fields in memory."""

    def __init__(self, boundary: bytes, limits: Limits):
        if not boundary:
            raise Refused(400, f"Content-Type: found no boundary; {_USAGE}")
        self._limits = limits
        self._fields: dict[str, _Field] = {}
        self._field: _Field | None = None
        self._key, self._value = b"", b""
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_to_key,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._add,
                "on_end": self._end,
            },
        )

    def write(self, some: bytes) -> None:
        self._parser.write(some)

    def end(self) -> dict[str, _Field]:
        if not self._ended:
            raise Refused(400, f"the form ends in the middle; {_USAGE}")
        return self._fields

    def _begin(self) -> None:
        self._disposition = b""

    def _add_to_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._key.lower() == b"content-disposition":
            self._disposition = self._value
        self._key, self._value = b"", b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if name not in _FIELDS or name in self._fields:
            again = " twice" if name in self._fields else ""
            raise Refused(400, f"found the field {short(name)}{again}; {_USAGE}")
        file_name = options.get(b"filename", b"").decode(errors="replace")
        self._field = self._fields[name] = _Field(name, file_name, bytearray())

    def _add(self, data: bytes, start: int, end: int) -> None:
        assert self._field is not None
        self._field.content += data[start:end]
        if self._field.name == "words" and len(self._field.content) > self._limits.text_bytes:
            raise Refused(
                413,
                f"words: found more than {self._limits.text_bytes} bytes, expected at most "
                f"{self._limits.words} words; leave some out",
            )

    def _end(self) -> None:
        self._ended = True
