"""Limits of the server, and the error that states one to a client."""

import dataclasses

# Time in which a refused client may still send, so that it reads the answer.
DISCARD_SECONDS = 2


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of every request. Images have those of ``data.sources.image_opening`` as well.

    Attributes:
        body_bytes: of an upload.
        text_bytes: of the words of an upload.
        words, word_characters: number of words, and characters of each.
        requests: uploads that are received, wait or are in detection at once.
        connections: open connections at once.
        head_bytes, head_seconds: of the head of a request.
        idle_seconds: time without a byte of an upload.
        upload_seconds: time for a whole upload.
        detection_seconds: time until a detection is answered: decoding, embedding of new words,
            compiling, computing. A hundred new words alone take minutes on a few CPU cores.
        ending_seconds: time that running requests get when the server ends.
    """

    body_bytes: int = 2**25
    text_bytes: int = 2**18
    words: int = 100
    word_characters: int = 100
    requests: int = 8
    connections: int = 128
    head_bytes: int = 2**14
    head_seconds: float = 10
    idle_seconds: float = 10
    upload_seconds: float = 60
    detection_seconds: float = 600
    ending_seconds: int = 5


class Refused(Exception):
    """A request is refused; the client gets the status and the message.

    Args:
        status: of HTTP.
        message: found, expected and remedy.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
