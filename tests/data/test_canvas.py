import numpy as np
import pytest

from regionclip_jax.data.canvas import check_canvases, place_on_canvas, smallest_canvas

SIZES = ((800, 1344), (1344, 800), (1344, 1344))


def check(canvas_sizes, short_side=800, max_long_side=1333, images_per_process=2, process_count=1):
    check_canvases(
        canvas_sizes,
        short_side=short_side,
        max_long_side=max_long_side,
        images_per_process=images_per_process,
        process_count=process_count,
    )


def test_the_smallest_canvas_that_holds_the_picture_is_chosen():
    assert smallest_canvas(SIZES, 700, 1300) == (800, 1344)
    assert smallest_canvas(SIZES, 801, 600) == (1344, 800)
    assert smallest_canvas(SIZES, 801, 801) == (1344, 1344)
    assert smallest_canvas(SIZES, 1345, 10) is None


def test_a_picture_lies_in_the_top_left_corner():
    canvas = np.zeros((4, 5, 3), np.uint8)
    place_on_canvas(np.ones((2, 3, 3), np.uint8), canvas)
    assert canvas[:2, :3].all() and canvas.sum() == 18


def test_canvases_that_hold_all_the_limits_allow_are_accepted():
    check(SIZES)
    check(SIZES[:2], images_per_process=1)
    check(SIZES[2:], process_count=4)
    check(((64, 64),), short_side=None, max_long_side=None)


def test_upright_and_lying_pictures_in_one_batch_need_a_canvas_for_both():
    with pytest.raises(ValueError, match="1333 x 1333"):
        check(SIZES[:2])


def test_a_canvas_below_the_limits_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"no canvas of \(\(800, 1344\),\) holds 1333 x 800"):
        check(SIZES[:1], images_per_process=1)


def test_several_canvases_with_several_processes_are_refused():
    with pytest.raises(ValueError, match="shapes would differ"):
        check(SIZES, process_count=2)


@pytest.mark.parametrize("sizes", [(), ((0, 5),)])
def test_no_canvas_or_an_empty_one_is_refused(sizes):
    with pytest.raises(ValueError, match="canvas_sizes"):
        check(sizes)
