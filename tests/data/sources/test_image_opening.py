import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import regionclip_jax
from regionclip_jax.data.loading.decoding import decode_image, read_any_image
from regionclip_jax.data.sources import image_opening
from regionclip_jax.data.sources.image_files import image_size, read_image
from regionclip_jax.data.sources.image_opening import FORMATS, MOST_BYTES, MOST_PIXELS
from regionclip_jax.data.sources.records import RecordError

SIDE = int(MOST_PIXELS**0.5)


def encoded(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_with(*chunks):
    png = encoded(Image.new("RGB", (4, 4)), "PNG")
    return png[:33] + b"".join(chunks) + png[33:]  # behind the header


def tiff(**tags):
    numbers = {"width": 256, "height": 257, "bits": 258, "compression": 259,
               "photometric": 262, "samples": 277, "tile_width": 322, "tile_height": 323,
               "at": 324, "size": 325}  # fmt: skip
    usual = {"bits": 8, "compression": 5, "photometric": 1, "samples": 1, "at": 200, "size": 1000}
    values = sorted((numbers[name], value) for name, value in (usual | tags).items())
    entries = b"".join(struct.pack("<HHLL", number, 4, 1, value) for number, value in values)
    return struct.pack("<2sHLH", b"II", 42, 8, len(values)) + entries + bytes(1200)


def with_scans(number, height=64, width=64):
    """Progressive JPEG whose last scan is repeated; the header claims a size."""
    data = encoded(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    frame = data.index(b"\xff\xc2")
    data = data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (number - data.count(b"\xff\xda")) + data[-2:]


def bmp_of_runs(side):
    header = (
        struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 2, 0) + bytes(4) + b"abc\0"
    )
    runs = (b"\xff\1" * (side // 255) + bytes([side % 255, 1]) + b"\0\0") * side + b"\0\1"
    return b"BM" + struct.pack("<IHHI", 62 + len(runs), 0, 0, 62) + header + runs


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
FITS = b"".join(
    line.ljust(80)
    for line in (b"SIMPLE  = T", b"BITPIX  = 8", b"NAXIS   = 1", b"NAXIS1  = 4", b"END")
)


def test_no_other_module_gives_files_to_pillow():
    files = Path(regionclip_jax.__file__).parent.rglob("*.py")
    opening = [file.name for file in files if "Image.open(" in file.read_text(encoding="utf-8")]
    assert opening == ["image_opening.py"]


def test_all_formats_of_the_list_are_opened():
    for file_format in FORMATS:
        data = encoded(Image.new("RGB", (5, 3)), file_format)
        assert image_size(data) == (3, 5)
        assert decode_image(data, source="S", key="K").shape == (3, 5, 3)


@pytest.mark.parametrize(
    "data",
    [EPS, FITS, b"%PDF-1.4\n", b"\x00\x00\x01\xb3" + bytes(20)],
    ids=["EPS", "FITS", "PDF", "MPEG"],
)
def test_other_formats_are_refused_and_start_no_process(data, tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(
        RecordError, match="none of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP.*: convert or"
    ):
        decode_image(data, source="S", key="K")
    assert image_size(data) is None and not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (with_scans(65), "in 65 scans"),
        (with_scans(17, SIDE, SIDE), "in 17 scans"),
        (tiff(width=100, height=100, tile_width=46336, tile_height=46336), "tiles of 46336"),
        (tiff(width=100, height=100, tile_width=16, tile_height=0), "tiles of 0"),
        (bmp_of_runs(2000), "run lengths"),
        (b"P3\n2000 2000\n255\n" + b"1 " * 48, "as text"),
        # Pillow joins all of these segments anew for each of them.
        (b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 300, "more metadata"),
        # Each of these tags is all of the rest of the file.
        (
            struct.pack("<2sHLH", b"II", 42, 8, 200)
            + b"".join(struct.pack("<HHLL", i, 7, 2**17, 2410) for i in range(1000, 1200))
            + bytes(4 + 2**17),
            "more metadata|identify|formats",
        ),
        (png_with(*[chunk(b"prIv", b"")] * 2**17), "more metadata"),
        (png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))), "too large|formats"),
        (png_with(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8)))), "too large|formats"),
        (png_with(chunk(b"IHDR", struct.pack(">II5B", 0, 0, 8, 2, 0, 0, 0))), "formats|pixels"),
    ],
    ids=["scans", "scanned", "tile", "no_tile", "runs", "PPM", "EXIF", "tags", "chunks", "text",
         "profile", "empty"],
)  # fmt: skip
def test_small_files_of_much_work_are_record_errors(data, problem):
    with pytest.raises(RecordError, match=problem):
        decode_image(data, source="S", key="K")


def test_usual_scans_and_run_lengths_are_decoded():
    assert (decode_image(bmp_of_runs(300), source="S", key="K") == list(b"cba")).all()
    data = encoded(Image.effect_noise((300, 200), 50), "JPEG", progressive=True)
    assert decode_image(data, source="S", key="K").shape == (200, 300, 3)
    assert decode_image(with_scans(64), source="S", key="K").shape == (64, 64, 3)
    # A marker in the metadata is no scan.
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 200) + b"\xff\xda" * 100
    assert decode_image(data[:2] + comment + data[2:], source="S", key="K").shape == (200, 300, 3)


def test_an_orientation_in_too_long_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    short, long = exif.tobytes(), exif.tobytes() + bytes(2**16)
    image = Image.new("RGB", (4, 2))
    assert image_size(encoded(image, "PNG", exif=short)) == (4, 2)
    assert image_size(encoded(image, "PNG", exif=long)) == (2, 4)


def test_only_the_first_frame_of_an_animation_is_decoded():
    frames = [Image.new("P", (4, 4), number % 7) for number in range(50)]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert decode_image(data, source="S", key="K").shape == (4, 4, 3)


def test_a_pipe_or_device_among_images_is_a_record_error(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path, tmp_path.joinpath("/dev/zero")):
        with pytest.raises(RecordError, match="expected a regular file"):
            read_image(path, "S", "K")
        assert image_size(path) is None
    with pytest.raises(RecordError, match="expected a regular file"):
        read_any_image(tmp_path / "a.jpg")


def test_a_too_long_image_file_is_a_record_error_before_it_is_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(RecordError, match=f"more than {MOST_BYTES} bytes"):
        read_image(tmp_path / "a.jpg", "S", "K")


_MEASURE = r"""
import re, sys
from regionclip_jax.data.loading.decoding import decode_image
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
contents = [open(path, "rb").read() for path in sys.argv[1:]]
before = peak()
for content in contents:
    height, width, _ = decode_image(content, source="S", key="K").shape
print((peak() - before) * 1024 / (height * width))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_decoding_takes_16_bytes_a_pixel_at_most(tmp_path):
    """Measured: 16.1 for WebP, 12.0 for a progressive CMYK JPEG, at most 10.0 for the others."""
    image = Image.linear_gradient("L").resize((4096, 4096)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, mode, options in (
        ("a.jpg", "RGB", {"exif": exif, "progressive": True, "subsampling": 0}),
        ("b.jpg", "CMYK", {"exif": exif, "progressive": True, "subsampling": 0}),
        ("c.png", "RGBA", {"compress_level": 1}),
        ("d.tif", "RGB", {"exif": exif, "compression": "tiff_lzw"}),
        ("e.webp", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
    ):
        image.convert(mode).save(tmp_path / name, **options)
    command = [sys.executable, "-c", _MEASURE, *sorted(map(str, tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert 4 < float(done.stdout) < 19


def picture() -> Image.Image:
    """Image of 64 x 48 whose left half is red."""
    image = Image.new("RGB", (64, 48), (0, 0, 200))
    image.paste((200, 0, 0), (0, 0, 32, 48))
    return image


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


@pytest.mark.parametrize(
    "file_format", [pytest.param("AVIF", marks=needs_avif), "HEIF"], ids=["AVIF", "HEIC"]
)
def test_images_of_phones_are_read_and_turned_where_their_libraries_are(file_format):
    if file_format == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heic")
        assert "HEIF" in image_opening.readable_formats()
    data = encoded(picture(), file_format, quality=90)
    assert image_size(data) == (48, 64)
    pixels = decode_image(data, source="S", key="K").astype(int)
    assert np.abs(pixels - np.asarray(picture())).mean() < 10
    # A camera that lay on its side: viewers turn it by 270 degrees.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture().transpose(Image.Transpose.ROTATE_90)
    data = encoded(turned, file_format, quality=90, exif=exif.tobytes())
    assert image_size(data) == (48, 64)
    pixels = decode_image(data, source="S", key="K").astype(int)
    assert np.abs(pixels - np.asarray(picture())).mean() < 10
    for cut in (data[:40], data[: len(data) // 2], data[:-300]):
        with pytest.raises(RecordError):
            decode_image(cut, source="S", key="K")


@pytest.mark.parametrize(("name", "brand"), [("AVIF", b"avif"), ("HEIF", b"heic")])
def test_a_format_without_its_library_is_refused_with_the_command_that_installs_it(
    name, brand, monkeypatch
):
    monkeypatch.setattr(image_opening, "readable_formats", lambda: FORMATS)
    data = b"\0\0\0\x1cftyp" + brand + bytes(60)
    with pytest.raises(RecordError, match={"AVIF": "newer one", "HEIF": r"\.\[heic\]"}[name]):
        decode_image(data, source="S", key="K")


def test_the_pixels_of_every_format_are_bounded_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(image_opening, "MOST_PIXELS", 64 * 48 - 1)
    for file_format in image_opening.readable_formats():
        data = encoded(picture(), file_format)
        with pytest.raises(RecordError, match="48 x 64 .* are more than 3071 pixels"):
            decode_image(data, source="S", key="K")
