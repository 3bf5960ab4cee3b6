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
            st.lists(st.floats(width=32, allow_nan=False), min_size=4, max_size=4),
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
