"""`regionclip serve`: the port, the end, and attacks on the running server."""

import concurrent.futures
import contextlib
import io
import json
import socket
import struct
import time
import zlib
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image

from regionclip_jax.commands import serve
from regionclip_jax.serving.limits import Limits
from served import interrupt, served

pytestmark = pytest.mark.command


def png(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(url: str, image: bytes, words: str = "cat", name: str = "a.png") -> httpx2.Response:
    files = {"image": (name, image)}
    return httpx2.post(f"{url}/detect", files=files, data={"words": words}, timeout=120)


def raw(url: str, content: bytes, wait: float = 60) -> bytes:
    """Send bytes and return all that the server answers until it closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=wait) as connection:
        connection.sendall(content)
        answer = b""
        while some := connection.recv(2**16):
            answer += some
    return answer


def head(length: int, more: str = "") -> bytes:
    return (
        "POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
        f"{length}\r\nContent-Type: multipart/form-data; boundary=b\r\n{more}\r\n"
    ).encode()


def test_a_port_in_use_is_an_error_that_names_it(nano_directory, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main([str(nano_directory), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --port: {port} of 127.0.0.1 is in use")
    assert f"--port {port + 1}" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "65536"], "--port: found 65536, expected 0 to 65535"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen on 192.0.2.1"),
        (["--host", "no.such.invalid", "--port", "0"], "--host: found 'no.such.invalid'"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(nano_directory, capsys, flags, message):
    assert serve.main([str(nano_directory), *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_cannot_detect_is_refused(nano_directory, tmp_path, capsys):
    assert serve.main([str(tmp_path / "none"), "--port", "0"]) == 1
    assert "none" in capsys.readouterr().err


@pytest.fixture(scope="module")
def attacked(nano_directory):
    """Return the URL of a running server, and a function that checks that it still answers."""
    with served(nano_directory) as (url, process):
        image = png(60, 60)
        first = upload(url, image)
        assert first.status_code == 200 and first.json()["dataset"]["annotations"]

        def check() -> None:
            answer = upload(url, image)
            assert answer.status_code == 200, answer.text
            assert answer.json()["dataset"] == first.json()["dataset"]
            assert process.poll() is None

        yield url, check
        status, _, errors = interrupt(process)
        assert status == 0 and "Traceback" not in errors, errors


@pytest.mark.slow
def test_fifty_uploads_at_once(attacked):
    url, check = attacked
    large = png(1000, 1000)
    assert len(large) > 2**21
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: upload(url, large), range(50)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= Limits().requests
    for answer in answers:
        if answer.status_code == 503:
            assert "busy" in answer.json()["error"] and int(answer.headers["retry-after"]) >= 1
    check()


@pytest.mark.slow
def test_malformed_forms_over_a_socket(attacked):
    url, check = attacked
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    malformed = {
        b"": b"ends in the middle",
        b"--b": b"ends in the middle",
        b"\x00" * 100: b"damaged",
        part: b"ends in the middle",
        part + b"x\r\n--b\r\n": b"ends in the middle",
        b"--b\r\n" + b"A" * 100_000: b"damaged",
        b"--b\r\n" + b"A: b\r\n" * 10_000: b"damaged",
        (part + b"x\r\n") * 10_000: b"twice",
        part.replace(b"\r\n\r\n", b"; charset=punycode\r\n\r\n") + b"x--b--": b"ends in the middle",
    }
    for body, message in malformed.items():
        answer = raw(url, head(len(body), "Connection: close\r\n") + body)
        assert answer.startswith(b"HTTP/1.1 400 ") and message in answer, answer
    check()


@pytest.mark.slow
def test_malformed_heads_over_a_socket(attacked):
    url, check = attacked
    get, close = b"GET /%b HTTP/1.1\r\nHost: ", b"\r\nConnection: close\r\n\r\n"
    heads = {
        b"nonsense\r\n\r\n": 400,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500): 400,
        get % b"" + b"127.0.0.1\r\nA: " + b"x" * 200_000: 400,
        b"GET / HTTP/1.1\r\n\r\n": 400,
        get % b"" + b"photos.example" + close: 400,
        get % b"../../../etc/passwd" + b"127.0.0.1" + close: 404,
        get % b"/etc/passwd" + b"[::1]" + close: 404,
        get % b"page/..%2f..%2fapp.py" + b"localhost" + close: 404,
        head(-5): 400,
        head(2**40, "Expect: 100-continue\r\n"): 413,
        head(2**40): 413,
    }
    for content, status in heads.items():
        answer = raw(url, content)
        assert answer.startswith(b"HTTP/1.1 %d " % status), (content[:60], answer[:200])
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    check()


@pytest.mark.slow
def test_requests_that_are_sent_by_half_time_out(attacked):
    url, check = attacked
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        slow = [
            pool.submit(raw, url, content)
            for content in (head(10_000) + b"--b\r\nContent-", b"GET / HTTP/1.1\r\nHost: 1", b"")
        ]
        check()  # others are answered meanwhile
        for one in slow:
            assert one.result().startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < Limits().idle_seconds + 30


@pytest.mark.slow
@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_small_file_of_many_pixels(attacked, side):
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    url, check = attacked
    claimed = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", claimed)
    bomb += chunk(b"IDAT", zlib.compress(bytes(2**26), 9)) + chunk(b"IEND", b"")
    assert len(bomb) < 2**17
    answer = upload(url, bomb, name="../../bomb.png")
    assert answer.status_code == 422 and answer.json()["error"].startswith("bomb.png: ")
    check()


@pytest.mark.slow
def test_ten_thousand_words(attacked):
    url, check = attacked
    answer = upload(url, png(60, 60), ",".join(f"word {number}" for number in range(10_000)))
    assert answer.status_code == 422 and "found 10000" in answer.json()["error"]
    check()


@pytest.mark.slow
def test_many_idle_connections(attacked):
    url, check = attacked
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    with contextlib.ExitStack() as stack:
        for _ in range(Limits().connections + 5):
            connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
            stack.enter_context(connection)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 503 ")
    check()


@pytest.mark.slow
def test_ctrl_c_during_a_detection_ends_at_once_with_status_0(nano_directory):
    """The first detection compiles a program, which takes seconds and cannot be interrupted."""
    with served(nano_directory) as (url, process):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(upload, url, png(60, 60), "ant, bee, cat, dog, elk, fox, gnu")
            time.sleep(0.5)
            began = time.monotonic()
            status, _, errors = interrupt(process)
            assert time.monotonic() - began < Limits().ending_seconds + 15
            assert status == 0 and "Traceback" not in errors, errors
            try:
                answer = waiting.result()
            except httpx2.TransportError:
                return
            assert answer.status_code in (200, 503)


@pytest.mark.slow
def test_a_second_server_cannot_take_the_port(nano_directory):
    with served(nano_directory) as (url, _):
        port = str(urlsplit(url).port)
        assert serve.main([str(nano_directory), "--port", port]) == 1
