import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from regionclip_jax.data.loading.decoding import decode_image, decode_image_of, read_any_image
from regionclip_jax.data.sources.image_files import image_size
from regionclip_jax.data.sources.image_opening import MOST_PIXELS
from regionclip_jax.data.sources.records import (
    DetectionRecord,
    ImageTextRecord,
    RecordError,
    SizeMismatch,
)


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


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_viewers_show_it(orientation, file_format):
    pixels = np.kron(np.array([[0, 80, 160], [240, 40, 120]], np.uint8), np.ones((8, 8), np.uint8))
    options = {"exif": oriented(orientation)}
    if file_format == "WEBP":
        options["lossless"] = True
    data = encoded(Image.fromarray(pixels).convert("RGB"), file_format, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    assert image_size(data) == expected.shape[:2]


def detection_record(data, size):
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return DetectionRecord("K", data, *empty, 1, size=size)


@pytest.mark.parametrize(
    ("stored", "annotated", "decoded"),
    [
        ((30, 40), None, (40, 30)),
        ((30, 40), (40, 30), (40, 30)),
        ((30, 40), (30, 40), (30, 40)),
        ((40, 40), (40, 40), (40, 40)),
    ],
)
def test_the_annotated_size_decides_whether_an_image_is_turned(stored, annotated, decoded):
    pixels = np.zeros((*stored, 3), np.uint8)
    pixels[: stored[0] // 2] = 255
    data = encoded(Image.fromarray(pixels), "JPEG", exif=oriented(6))
    found = decode_image_of(detection_record(data, annotated), "S")
    assert found.shape[:2] == decoded == image_size(data, annotated)
    # A turn by 90 degrees makes the upper half the right one.
    turned = annotated != stored or stored == stored[::-1]
    assert found[3, -3].min() == 255 and found[-3, 3].max() == 0
    assert found[3, 3].max() == (0 if turned else 255)


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        (
            (60, 80),
            r"S, record K: the image is 30 x 40 .* says 60 x 80: it was resized .* by 0\.5$",
        ),
        ((61, 81), "it was resized"),
        ((40, 30), "height and width are exchanged"),
        ((30, 50), "one of them belongs to another image"),
    ],
)
def test_boxes_of_another_size_are_refused_and_captions_are_not(annotated, message):
    data = encoded(Image.new("RGB", (40, 30)), "JPEG")
    with pytest.raises(SizeMismatch, match=message):
        decode_image_of(detection_record(data, annotated), "S")
    captioned = ImageTextRecord("K", data, ("a",), size=annotated)
    assert decode_image_of(captioned, "S").shape == (30, 40, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_metadata_does_not_refuse_an_image():
    data = encoded(Image.new("RGB", (5, 3)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).shape == (3, 5, 3) and image_size(data) == (3, 5)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_image_is_a_record_error_with_source_and_key(file_format):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), file_format)
    with pytest.raises(RecordError, match="S, record K: .* cannot be decoded"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0"])
def test_bytes_without_an_image_are_a_record_error(data):
    with pytest.raises(RecordError, match=f"{len(data)} bytes"):
        decode(data)


def test_sixteen_bits_of_other_formats_are_scaled_to_eight_bits():
    # Pillow reads a PGM of 16 bits as 32-bit numbers.
    pgm = b"P5 4 1 65535\n" + np.array([0, 0x0100, 0x8000, 0xFFFF], ">u2").tobytes()
    assert decode(pgm)[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 1000, 4095]], np.uint16), "from 0 to 4095, expected the range of 16 bits"),
        (np.array([[0, 100, 255]], np.int32), "from 0 to 255"),
        (np.array([[0, 70_000]], np.int32), "to 70000"),
        (np.array([[-1, 40_000]], np.int32), "from -1 to"),
        (np.array([[0, 0.5, 255]], np.float32), "floats from 0 to 255, expected 0 to 1"),
        (np.array([[-0.1, 0.5]], np.float32), "floats from -0.1"),
        (np.array([[np.nan, 0.5]], np.float32), "floats from nan"),
    ],
)
def test_values_without_a_known_white_are_refused(values, message):
    image = Image.fromarray(values)
    with pytest.raises(RecordError, match=f"S, record K: .*{message}.*8 bits"):
        decode(encoded(image, "TIFF"))
    with pytest.raises(ValueError, match=message):
        read_any_image(image)


def test_floats_from_0_to_1_are_scaled_to_eight_bits():
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    assert decode(encoded(Image.fromarray(values), "TIFF"))[0, :, 2].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(("white", "usable"), [(0xFFFF, True), (0x0FFF, False)])
def test_colours_of_sixteen_bits_follow_the_same_rule(white, usable):
    # Pillow reads such files but does not write them.
    rows = b"".join(b"\0" + np.full((4, 3), white, ">u2").tobytes() for _ in range(3))
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content
        data += struct.pack(">I", zlib.crc32(name + content))
    if usable:
        assert (decode(data) == 255).all()
    else:
        with pytest.raises(RecordError, match="more than 8 bits"):
            decode(data)


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
    file_format=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]),
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


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (0, 4)), np.zeros((0, 0, 3), np.uint8), np.zeros((4, 0), np.uint8)]
)
def test_an_image_without_pixels_is_refused(image):
    with pytest.raises(ValueError, match=r"image: .*0.* \(height, width\), expected pixels"):
        read_any_image(image)
