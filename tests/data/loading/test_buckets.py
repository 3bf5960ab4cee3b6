import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.loading.buckets import (
    Buckets,
    check_canvases,
    require_canvas,
    smallest_canvas,
)
from regionclip_jax.data.loading.transforms import resized_size
from regionclip_jax.data.sources.records import RecordError

SIZES = ((800, 1344), (1344, 800), (1344, 1344))


def check(canvas_sizes, together=2, *, limits=(800, 1333), process_count=1, grouped=False):
    check_canvases(
        canvas_sizes,
        short_side=limits[0],
        max_long_side=limits[1],
        images_together=together,
        process_count=process_count,
        grouped=grouped,
    )


def test_the_smallest_canvas_that_fits_the_image_is_used():
    assert smallest_canvas(SIZES, 700, 1300) == (800, 1344)
    assert smallest_canvas(SIZES, 801, 600) == (1344, 800)
    assert smallest_canvas(SIZES, 801, 801) == (1344, 1344)
    assert smallest_canvas(SIZES, 1345, 10) is None


def test_canvases_for_all_sizes_within_the_limits_are_accepted():
    check(SIZES)
    check(SIZES[:2], together=1)
    check(SIZES[2:], process_count=4)
    check(((64, 64),), limits=(None, None))


def test_portrait_and_landscape_images_in_one_batch_need_a_canvas_for_both():
    with pytest.raises(ValueError, match="1333 x 1333"):
        check(SIZES[:2])


def test_a_canvas_below_the_limits_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"no canvas of \(\(800, 1344\),\) holds 1333 x 800"):
        check(SIZES[:1], together=1)


def test_several_canvases_with_several_processes_are_refused_unless_batches_are_grouped():
    with pytest.raises(ValueError, match="shapes would differ.*group_by_canvas"):
        check(SIZES, process_count=2)
    check(SIZES, process_count=2, grouped=True)


def buckets(sizes, canvas_sizes=SIZES, short_sides=(800,), method="bicubic_truncate"):
    return Buckets(np.array(sizes), canvas_sizes, short_sides, 1333, method)


def test_buckets_have_the_canvas_of_each_image_and_the_fraction_of_padding():
    assigned = buckets([(480, 640), (640, 480), (600, 600), (480, 640)])
    assert assigned.canvas_sizes == ((1344, 800), (1344, 1344), (800, 1344))
    assert [assigned.canvas(i) for i in range(4)] == [SIZES[i] for i in (0, 1, 0, 0)]
    # At short side 800 the images are 800 x 1066, 1066 x 800, 800 x 800, 800 x 1066.
    assert assigned.padding_share == pytest.approx(1 - (3 * 1066 + 800) / (4 * 1344))
    assert str(assigned) == (
        "1 on 1344 x 800, 0 on 1344 x 1344, 3 on 800 x 1344; 25.6% of the pixels are padding"
    )


def test_images_of_several_buckets_share_the_smallest_canvas_for_all():
    sizes = ((800, 1088), *SIZES)
    assigned = buckets([(480, 640), (480, 800), (640, 480)], sizes)
    near, far, upright = assigned.numbers
    assert assigned.shared([near]) == (800, 1088) and assigned.shared([near, far]) == (800, 1344)
    assert assigned.shared([near, upright]) == assigned.shared(range(4)) == (1344, 1344)
    assert buckets([(480, 640)], SIZES[:2]).shared([0, 1]) is None


@pytest.mark.property
@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=8),
    st.lists(st.integers(300, 800), min_size=1, max_size=3),
    st.sampled_from(["bicubic_truncate", "bilinear_round"]),
)
def test_the_canvas_of_a_bucket_fits_its_image_at_every_short_side(shapes, short_sides, method):
    assigned = buckets(shapes, ((800, 1088), (1088, 800), *SIZES), short_sides, method)
    for index, shape in enumerate(shapes):
        sizes = [resized_size(*shape, short, 1333, method) for short in short_sides]
        assert (np.max(sizes, 0) <= assigned.canvas(index)).all()
    assert 0 <= assigned.padding_share < 1


def test_images_without_resizing_get_buckets_by_their_size():
    assigned = Buckets(
        np.array([(30, 50), (50, 30), (90, 9)]), ((32, 64), (64, 64)), None, None, ""
    )
    # The last image fits no canvas, so the loader skips its record.
    assert [assigned.canvas(i) for i in range(3)] == [(32, 64), (64, 64), (64, 64)]
    with pytest.raises(RecordError, match=r"S, record k: 90 x 9 .*\(\(64, 64\),\)"):
        require_canvas((assigned.canvas(2),), 90, 9, "S", "k")


@pytest.mark.parametrize("sizes", [(), ((0, 5),)])
def test_no_canvas_or_an_empty_one_is_refused(sizes):
    with pytest.raises(ValueError, match="canvas_sizes"):
        check(sizes)
