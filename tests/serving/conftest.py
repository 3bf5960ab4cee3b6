"""A model with random weights, and clients of the application in this process."""

import io

import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import regionclip_jax
from regionclip_jax.serving.app import make_app
from regionclip_jax.serving.detections import Detections
from regionclip_jax.serving.limits import Limits

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def served_model(nano_directory):
    return regionclip_jax.load(nano_directory, short_side=64, max_long_side=64)


@pytest.fixture(scope="session")
def client(served_model) -> TestClient:
    """Client of an application with the limits of a real server, but few bytes."""
    limits = Limits(body_bytes=2**18, text_bytes=2**17)
    app = make_app(served_model, Detections(served_model, limits), "127.0.0.1", limits)
    return TestClient(app, base_url=URL)


@pytest.fixture
def open_client(served_model):
    """``open_client(limits)``: a client for several requests at once."""

    def make(limits: Limits) -> httpx2.AsyncClient:
        app = make_app(served_model, Detections(served_model, limits), "127.0.0.1", limits)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url=URL, timeout=120)

    return make


@pytest.fixture(scope="session")
def photo() -> bytes:
    return encoded(60, 60)


def encoded(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
