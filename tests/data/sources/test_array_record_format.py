import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.sources.array_record_format import decode_record, encode_record
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord

words = st.lists(st.text(max_size=8), max_size=3).map(tuple)


@pytest.mark.property
@given(st.text(max_size=8), st.binary(max_size=20), words, words)
def test_a_decoded_image_text_record_equals_the_original(key, image, captions, tags):
    record = ImageTextRecord(key, image, captions, tags)
    assert decode_record(encode_record(record)) == record


@pytest.mark.property
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0, 2**24, width=32), min_size=4, max_size=4).map(sorted),
            st.integers(0, 2**31 - 1),
            st.booleans(),
        ),
        max_size=4,
    ),
    st.integers(0, 2**40),
    st.binary(max_size=9),
    words,
)
def test_a_decoded_detection_record_equals_the_original(rows, image_id, image, captions):
    record = DetectionRecord(
        "k",
        image,
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([index for _, index, _ in rows], np.int32),
        np.array([crowd for _, _, crowd in rows], bool),
        image_id,
        captions,
    )
    back = decode_record(encode_record(record))
    for name in ("boxes", "classes", "crowd"):
        expected, actual = getattr(record, name), getattr(back, name)
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype
    assert (back.key, back.image, back.image_id, back.captions) == ("k", image, image_id, captions)


@pytest.mark.parametrize("data", [b"", b"\xff\xff\x00\x00{", b"\x02\x00\x00\x00{}rest"])
def test_bytes_without_a_record_raise_a_value_error(data):
    with pytest.raises(ValueError, match="no encoded record"):
        decode_record(data)


def encoded(header, arrays=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + arrays


CAPTIONS = {"kind": "image_text", "key": "k", "captions": ["a"]}
BOXES = {"kind": "detection", "key": "k", "captions": [], "boxes": 1, "image_id": 1, "size": [9, 9]}


def arrays(*box):
    return np.array(box, "<f4").tobytes() + np.array(0, "<i4").tobytes() + b"\0image"


@pytest.mark.parametrize(
    "change",
    [
        {"key": 7}, {"key": None}, {"captions": [3]}, {"captions": "text"}, {"captions": None},
        {"captions": [["a"]]}, {"tags": [1.5]}, {"tags": "tags"}, {"size": [0, 9]}, {"size": [9]},
        {"size": [9.0, 9.0]}, {"size": [-1, 9]}, {"size": [2**70, 9]}, {"size": 9},
        {"size": [float("nan"), 9]}, {"kind": 7}, {"kind": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_headers_of_other_types_are_no_records(change):
    with pytest.raises(ValueError, match="no encoded record"):
        decode_record(encoded(CAPTIONS | change))
    for missing in ("kind", "key", "captions"):
        with pytest.raises(ValueError, match=f"KeyError: '{missing}'"):
            decode_record(encoded({k: v for k, v in CAPTIONS.items() if k != missing}))
    assert decode_record(encoded(CAPTIONS | {"further": 1})).captions == ("a",)


@pytest.mark.parametrize("header", [b"[]", b"7", b"null", b"[" * 10**5, b"\xff", b"NaN", b""])
def test_headers_that_are_no_objects_are_no_records(header):
    with pytest.raises(ValueError, match="no encoded record"):
        decode_record(encoded(header))


@pytest.mark.parametrize(
    ("change", "box"),
    [
        ({"boxes": -1}, (1, 2, 3, 4)), ({"boxes": 2**62}, (1, 2, 3, 4)),
        ({"boxes": 1.0}, (1, 2, 3, 4)), ({"boxes": True}, (1, 2, 3, 4)),
        ({"image_id": 2**63}, (1, 2, 3, 4)), ({"image_id": "1"}, (1, 2, 3, 4)),
        ({}, (1, 2, 2.0**63, 4)), ({}, (1, 2, np.inf, 4)), ({}, (-np.inf, 2, 3, 4)),
        ({}, (np.nan, 2, 3, 4)), ({}, (3, 2, 1, 4)), ({}, (-1, 2, 3, 4)), ({}, (1, 2, 3, 11)),
        ({"size": None}, (1, 2, 2.0**63, 4)),
    ],
    ids=str,
)  # fmt: skip
def test_unusable_boxes_are_no_records(change, box):
    assert decode_record(encoded(BOXES, arrays(1, 2, 3, 4))).image == b"image"
    with pytest.raises(ValueError, match="no encoded record"):
        decode_record(encoded(BOXES | change, arrays(*box)))
