import io
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regionclip_jax.data.loading.decoding import decode_image
from regionclip_jax.data.sources.image_files import MOST_PIXELS, image_size
from regionclip_jax.data.sources.records import RecordError


def encoded(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decode(data, **options):
    return decode_image(data, source="S", key="K", **options)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode_become_rgb(mode):
    image = Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode)
    pixels = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert pixels.shape == (3, 5, 3) and pixels.dtype == np.uint8
    assert (pixels == 255).all()


def test_sixteen_bit_gray_is_scaled_to_eight_bits():
    values = np.array([[0, 0x0100, 0x8000, 0xFFFF]], np.uint16)
    assert decode(encoded(Image.fromarray(values)))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_orientation_is_applied_only_on_request():
    image = Image.new("RGB", (5, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif)
    assert decode(data).shape == (3, 5, 3)
    assert decode(data, apply_orientation=True).shape == (5, 3, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_image_is_a_record_error_with_source_and_key(file_format):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), file_format)
    with pytest.raises(RecordError, match="S, record K: .* cannot decode"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0"])
def test_bytes_without_an_image_are_a_record_error(data):
    with pytest.raises(RecordError, match=f"{len(data)} bytes"):
        decode(data)


def test_sixteen_bits_of_other_formats_are_scaled_to_eight_bits():
    # Pillow reads a PGM of 16 bits as 32-bit numbers.
    pgm = b"P5 4 1 65535\n" + np.array([0, 0x0100, 0x8000, 0xFFFF], ">u2").tobytes()
    assert decode(pgm)[0, :, 1].tolist() == [0, 1, 128, 255]


def test_the_first_image_of_an_animation_is_used():
    first, second = Image.new("RGB", (5, 3), (255, 0, 0)), Image.new("RGB", (5, 3), (0, 0, 255))
    for file_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encoded(first, file_format, save_all=True, append_images=[second], **options)
        assert decode(data)[1, 1].tolist() == [255, 0, 0]


def test_a_cmyk_jpeg_becomes_rgb():
    pixels = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = pixels[4, 4].astype(int)
    assert red > 200 and green < 60 and blue < 60


def test_an_image_of_one_pixel_is_decoded():
    assert decode(encoded(Image.new("RGB", (1, 1), (9, 8, 7)))).tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize("side", [int(MOST_PIXELS**0.5) + 1, 20_000])
def test_a_header_with_too_many_pixels_is_a_record_error_before_decoding(side):
    # A PNG with a header for this size and no pixels.
    small = bytearray(encoded(Image.new("L", (1, 1))))
    small[16:24] = side.to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    with pytest.raises(RecordError, match="pixels"):
        decode(bytes(small))
    assert image_size(bytes(small)) is None


def test_the_size_is_read_from_the_header_of_a_file_or_of_bytes(tmp_path):
    data = encoded(Image.new("RGB", (5, 3)), "JPEG")
    (tmp_path / "lies.png").write_bytes(data)
    assert image_size(data) == image_size(tmp_path / "lies.png") == (3, 5)
    assert decode(data).shape == (3, 5, 3)
    assert image_size(b"") is None and image_size(tmp_path / "nowhere") is None


@pytest.mark.property
@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(
    file_format=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]),
    changes=st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=8),
    length=st.integers(0, 500),
)
def test_a_damaged_image_gives_pixels_or_a_record_error(file_format, changes, length):
    data = bytearray(encoded(Image.linear_gradient("L").resize((9, 7)), file_format))
    for offset, value in changes.items():
        data[offset % len(data)] = value
    try:
        pixels = decode(bytes(data[: max(length, 1)]))
    except RecordError:
        return
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


def test_a_record_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(RecordError("S", "K", "is broken")))
    assert str(error) == "S, record K: is broken" and error.key == "K"
