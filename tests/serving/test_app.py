"""The application in this process: answers, limits and hostile requests."""

import asyncio
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from regionclip_jax.artifacts.vocabulary import FILE_NAME
from regionclip_jax.reporting.detection_drawing import DRAWN_SCORE, best_names
from regionclip_jax.reporting.drawing import class_colour
from regionclip_jax.serving import page
from regionclip_jax.serving.app import make_app
from regionclip_jax.serving.detections import Detections
from regionclip_jax.serving.forms import Upload
from regionclip_jax.serving.limits import Limits

PAGE = Path(page.__file__).parent
FILES = {
    "/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript",
    "/drawing.js": "text/javascript", "/messages.js": "text/javascript",
    "/requests.js": "text/javascript", "/results.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}  # fmt: skip
BOUNDARY = b"12345"
HEAD = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'--12345\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--12345--\r\n"


def whole(image: bytes, words: bytes = b"cat", file_name: str = "a.png") -> bytes:
    return form(part("words", words), part("image", image, f'; filename="{file_name}"'))


def bomb(side: int) -> bytes:
    """Return a PNG of ``side`` x ``side`` white pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**22), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def send(client: TestClient, body: bytes, headers: dict | None = None):
    return client.post("/detect", content=body, headers=HEAD | (headers or {}))


def refused(response, status: int) -> str:
    """Check that an answer is an error as JSON; return its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    return response.json()["error"]


def test_an_upload_gives_the_detections_of_the_api_in_the_colours_of_its_drawings(
    client, served_model, photo
):
    files = {"image": ("photo.png", photo)}
    response = client.post("/detect", files=files, data={"words": "cat, dog\nremote control"})
    assert response.status_code == 200, response.text
    answer = response.json()
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    found = served_model.detect(pixels, ["cat", "dog", "remote control"])
    found = found.rows(best_names(found.boxes))
    expected = found.to_coco("photo.png")
    assert len(expected["annotations"]) > 3
    assert answer["dataset"] == expected
    colours = {str(row + 1): f"#{bytes(class_colour(row)).hex()}" for row in set(found.classes)}
    assert answer["colours"] == colours
    assert answer["labels"] == [f"{score:.0%}" for score in found.scores]
    assert answer["seconds"] > 0


def test_one_new_word_is_embedded_alone_and_compiles_nothing(client, served_model, photo):
    """The embeddings are those of a list that is embedded at once, bit for bit."""
    assert send(client, whole(photo, b"ant, bee")).status_code == 200
    sizes = served_model._predictor._program(*_program_key(served_model))._cache_size()
    asked: list[tuple[str, ...]] = []
    embed = served_model._embed_names
    served_model._embed_names = lambda names, templates: (
        asked.append(names) or embed(names, templates)
    )
    try:
        answer = send(client, whole(photo, b"ant, wasp, bee")).json()
    finally:
        served_model._embed_names = embed
    assert asked == [("wasp",)]
    assert served_model._predictor._program(*_program_key(served_model))._cache_size() == sizes
    found = served_model.detect(np.asarray(Image.open(io.BytesIO(photo))), ["ant", "wasp", "bee"])
    scores = [annotation["score"] for annotation in answer["dataset"]["annotations"]]
    np.testing.assert_array_equal(
        scores, np.round(found.scores[best_names(found.boxes)].astype(float), 6)
    )


def _program_key(model) -> tuple:
    keys = []
    make = model._predictor._program
    model._predictor._program = lambda *key: keys.append(key) or make(*key)
    try:
        model.detect(np.zeros((60, 60, 3), np.uint8), ["ant"])
    finally:
        model._predictor._program = make
    return keys[0]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (", ".join(f"name {k}" for k in range(10_000)), 422, "found 10000, expected at most 100"),
        ("x" * 101, 422, "one of 101 characters"),
        ("cat, Cat", 422, "the same text to the tokenizer"),
        ("25, 2 5", 422, "have the same tokens"),
        ("x" * 2**17 + "y", 413, "more than 131072 bytes"),
        (b"\xff\xfe", 422, "expected UTF-8"),
        (" , \n", 422, "type the names"),
    ],
)
def test_words_that_cannot_be_used_are_refused(client, photo, words, status, message):
    content = words if isinstance(words, bytes) else words.encode()
    assert message in refused(send(client, whole(photo, content)), status)


def test_equal_words_of_two_requests_are_refused_together(client, photo):
    assert send(client, whole(photo, b"31")).status_code == 200
    assert send(client, whole(photo, b"3 1")).status_code == 200
    assert "have the same tokens" in refused(send(client, whole(photo, b"31, 3 1")), 422)


def test_no_words_stand_for_the_names_of_the_directory(nano_directory, served_model, photo, client):
    path = nano_directory / FILE_NAME
    served_model.vocabulary(["cup", "spoon"]).save(path)
    try:
        detections = Detections(served_model, Limits())
    finally:
        path.unlink()
    app = make_app(served_model, detections, "127.0.0.1", Limits())
    own = TestClient(app, base_url="http://127.0.0.1:8000")
    assert own.get("/settings").json()["own_names"] == 2
    categories = send(own, form(part("image", photo))).json()["dataset"]["categories"]
    assert [category["name"] for category in categories] == ["cup", "spoon"]
    assert client.get("/settings").json()["own_names"] == 0


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        (b"no image", 422, "none of the formats BMP"),
        (bomb(12_000), 422, "12000 x 12000 (height x width) are more than"),
        (bomb(40_000), 422, "could be decompression bomb"),
        (bomb(8_000), 422, "cannot be decoded"),
        (b"", 400, "found no image"),
        (bytes(2**18), 413, "more than 0.25 MiB"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(client, image, status, message):
    assert message in refused(send(client, whole(image)), status)


def test_a_long_upload_in_chunks_is_refused(client):
    body = whole(bytes(2**18))
    parts = (body[start : start + 2**14] for start in range(0, len(body), 2**14))
    response = client.post("/detect", content=parts, headers=HEAD)
    assert "shrink the image" in refused(response, 413)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (b"", "image/png", 415, "found 'image/png'"),
        (b"", "", 415, "Content-Type: found ''"),
        (b"", "multipart/form-data", 400, "no boundary"),
        (b"--x--\r\n", "multipart/form-data; boundary=" + "x" * 300, 400, "damaged"),
        (b"nothing", HEAD["content-type"], 400, "damaged"),
        (b"", HEAD["content-type"], 400, "ends in the middle"),
        (whole(b"x")[:-4], HEAD["content-type"], 400, "ends in the middle"),
        (b"--12345\r\n\r\nx\r\n--12345--", HEAD["content-type"], 400, "found the field ''"),
        (b"--12345\r\n: x\r\n\r\nx\r\n--12345--", HEAD["content-type"], 400, "damaged"),
        (form(part("words", b"cat")), HEAD["content-type"], 400, "found no image"),
        (form(part("path", b"x")), HEAD["content-type"], 400, "found the field 'path'"),
        (form(part("image", b"x"), part("image", b"x")), HEAD["content-type"], 400, "twice"),
    ],
)
def test_malformed_forms_are_refused(client, body, content_type, status, message):
    headers = {"content-type": content_type}
    assert message in refused(client.post("/detect", content=body, headers=headers), status)


@given(st.data())
def test_a_damaged_form_ends_in_an_answer(client, photo, data):
    body = bytearray(whole(photo[:60] + b"x"))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(body) - 1))
        some = data.draw(st.binary(max_size=4) | st.sampled_from([b"\r\n", b"--12345", b'"']))
        body[position : position + data.draw(st.integers(0, 8))] = some
    response = send(client, bytes(body))
    refused(response, response.status_code)
    assert response.status_code in (400, 413, 415, 422)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\photos\\\\cat.png", "cat.png"),
        ("/", "image"),
        ("a\x00\x1b[31m\u202eb.png", "a[31mb.png"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_file_name_is_only_a_name(client, photo, given, kept):
    answer = send(client, whole(photo, b"cat", given)).json()
    assert answer["dataset"]["images"][0]["file_name"] == kept


@pytest.mark.parametrize("url", FILES)
def test_page_files_have_strict_headers(client, url):
    response = client.get(url)
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == FILES[url]
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers


def test_every_file_of_the_page_is_served():
    files = {f"/{path.name}" for path in PAGE.glob("*.*") if path.suffix != ".py"}
    assert set(FILES) == files - {"/index.html"} | {"/"} == set(page.read_page_files())


def test_the_page_names_no_other_address_and_has_no_code_in_its_markup():
    for path in PAGE.iterdir():
        if path.suffix not in (".html", ".css", ".js", ".svg"):
            continue
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"\w+://|[\"'(]//", text), path
        assert not re.search(r"@import|\bon\w+=\"|style=\"|innerHTML|<script>|<style", text), path


@pytest.mark.parametrize(
    "path",
    ["/../setup.cfg", "/..%2f..%2fsetup.cfg", "/%00", "/detect/", "/__init__.py"],
)
def test_no_other_file_is_served(client, path):
    refused(client.get(path), 404)


def test_a_wrong_method_is_refused(client):
    response = client.get("/detect")
    assert "/detect" in refused(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost:1", 200), ("[::1]:8000", 200), ("192.168.0.7", 200),
        ("LOCALHOST", 200), ("photos.example", 400), ("127.0.0.1.example", 400), ("", 400),
        ("localhost@photos.example", 400), ("[::1", 400),
    ],
)  # fmt: skip
def test_a_name_of_another_site_is_refused(client, host, status):
    response = client.get("/settings", headers={"host": host})
    assert response.status_code == status
    if status == 400:
        assert "--host NAME" in refused(response, 400)


@pytest.mark.parametrize("origin", ["http://photos.example", "null", "https://127.0.0.1:8000"])
def test_an_upload_of_another_site_is_refused(client, photo, origin):
    headers = {"origin": origin}
    assert "open the page there" in refused(send(client, whole(photo), headers), 403)
    headers = {"origin": "http://127.0.0.1:8000"}
    assert send(client, whole(photo), headers).status_code == 200


def test_the_settings_are_those_of_the_model(client, served_model):
    settings = client.get("/settings").json()
    assert settings["model"] == "nano" and settings["device"].startswith("cpu")
    assert settings["score_above"] == served_model.scores.detection.score_threshold
    assert settings["drawn_score"] == DRAWN_SCORE and settings["probabilities"]


def test_a_bug_is_an_error_as_json(served_model, photo):
    limits = Limits()
    detections = Detections(served_model, limits)
    detections._words = None
    app = make_app(served_model, detections, "127.0.0.1", limits)
    broken = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    assert "(AttributeError)" in refused(send(broken, whole(photo)), 500)


def test_more_requests_than_allowed_are_refused_until_one_ends(open_client, photo):
    release = asyncio.Event()
    arrived: list[int] = []
    body = whole(photo)

    async def slow(number: int):
        yield body[:100]
        arrived.append(number)
        await release.wait()
        yield body[100:]

    async def run():
        async with open_client(Limits(requests=3)) as client:
            upload = [
                asyncio.create_task(client.post("/detect", content=slow(k), headers=HEAD))
                for k in range(3)
            ]
            while len(arrived) < 3:
                await asyncio.sleep(0.01)
            busy = await client.post("/detect", content=body, headers=HEAD)
            page = await client.get("/")
            release.set()
            answers = await asyncio.gather(*upload)
            return busy, page, answers, await client.post("/detect", content=body, headers=HEAD)

    busy, page, answers, later = asyncio.run(run())
    assert "busy with 3 other requests" in refused(busy, 503)
    assert 1 <= int(busy.headers["retry-after"]) <= 60
    assert page.status_code == later.status_code == 200
    assert [answer.status_code for answer in answers] == [200] * 3


@pytest.mark.parametrize(
    "limits", [Limits(idle_seconds=0.2), Limits(idle_seconds=9, upload_seconds=0.4)]
)
def test_an_upload_that_stops_or_trickles_ends(open_client, photo, limits):
    async def trickle():
        yield whole(photo)[:100]
        for _ in range(600):
            await asyncio.sleep(0.02 if limits.idle_seconds > 1 else 60)
            yield b"x"

    async def run():
        async with open_client(limits) as client:
            return await client.post("/detect", content=trickle(), headers=HEAD)

    response = asyncio.run(run())
    assert "send it again" in refused(response, 408)
    assert response.headers["connection"] == "close"


def test_an_upload_whose_client_is_gone_is_not_computed(served_model):
    async def is_gone() -> bool:
        return True

    # Its image would be refused.
    upload = Upload(b"no image", "a.png", ("cat",))
    assert asyncio.run(Detections(served_model, Limits()).detect(upload, is_gone)) is None


def test_a_detection_over_its_time_is_answered_and_keeps_the_server_busy(
    open_client, served_model, photo
):
    async def run():
        async with open_client(Limits(detection_seconds=0.3)) as client:

            def detect(words: bytes) -> asyncio.Task:
                body = whole(photo, words)
                return asyncio.create_task(client.post("/detect", content=body, headers=HEAD))

            # The thread of detections waits for this lock before it embeds a new word.
            with served_model._making:
                late = detect(b"late word")
                await asyncio.sleep(0.1)
                waiting = detect(b"cat")
                answers = [await late, await waiting, await detect(b"cat")]
                assert (await client.get("/settings")).status_code == 200
            # The late detection and the first of a new word may take a while.
            for _ in range(600):
                answers.append(await detect(b"cat"))
                if answers[-1].status_code == 200:
                    break
                await asyncio.sleep(0.1)
            return answers

    late, waiting, new, *_, answered = asyncio.run(run())
    assert answered.status_code == 200
    assert "takes more than 0.3 seconds" in refused(late, 504)
    for busy in (waiting, new):
        assert "busy with a detection of more than 0.3 seconds" in refused(busy, 503)
        assert 1 <= int(busy.headers["retry-after"]) <= 60


def test_other_requests_are_answered_during_a_detection(open_client, served_model, photo):
    async def run():
        async with open_client(Limits()) as client:
            # The thread of detections waits for this lock before it embeds a new word.
            with served_model._making:
                detection = asyncio.create_task(
                    client.post("/detect", content=whole(photo, b"new word"), headers=HEAD)
                )
                await asyncio.sleep(0.05)
                for _ in range(3):
                    assert (await client.get("/settings")).status_code == 200
                assert not detection.done()
            return await detection

    assert asyncio.run(run()).status_code == 200
