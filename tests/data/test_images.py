import io
import pickle

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.data.images import decode_image
from regionclip_jax.data.records import RecordError


def encoded(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decode(data, **options):
    return decode_image(data, source="S", key="K", **options)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_every_mode_become_rgb(mode):
    image = Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode)
    pixels = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert pixels.shape == (3, 5, 3) and pixels.dtype == np.uint8
    assert (pixels == 255).all()


def test_sixteen_bit_gray_keeps_its_shades():
    values = np.array([[0, 0x0100, 0x8000, 0xFFFF]], np.uint16)
    assert decode(encoded(Image.fromarray(values)))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_orientation_is_applied_only_when_asked():
    image = Image.new("RGB", (5, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif)
    assert decode(data).shape == (3, 5, 3)
    assert decode(data, apply_orientation=True).shape == (5, 3, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_picture_is_a_record_error_naming_source_and_key(file_format):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), file_format)
    with pytest.raises(RecordError, match="S, record K: .* cannot decode"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0"])
def test_bytes_that_are_no_picture_are_a_record_error(data):
    with pytest.raises(RecordError, match=f"{len(data)} bytes"):
        decode(data)


def test_a_record_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(RecordError("S", "K", "is broken")))
    assert str(error) == "S, record K: is broken" and error.key == "K"
