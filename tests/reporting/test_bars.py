import numpy as np

from regionclip_jax.reporting.bars import Bar, Chart, Group, draw_charts

RED, BLUE = (200, 0, 0), (0, 0, 200)


def page(*bars, columns=1):
    chart = Chart("points", {"red": RED}, (Group("cats", "all of them", bars),))
    return draw_charts([[chart]] * columns, title="What?", subtitle="numbers of " * 30)


def spans(image, colour):
    """Return the spans of x in the lowest rows that have the colour, one for each span of rows."""
    rows = (image == np.array(colour, np.uint8)).all(-1)
    ys = np.flatnonzero(rows.any(axis=1))
    bands = np.split(ys, np.flatnonzero(np.diff(ys) > 1) + 1)
    return [(int(xs.min()), int(xs.max()) + 1) for b in bands for xs in [np.nonzero(rows[b])[1]]]


def test_bars_of_a_chart_have_one_scale():
    image = page(Bar(((10.0, RED),), "10"), Bar(((5.0, RED),)), Bar(((0.0, RED),), "0"))
    _legend, long, short = spans(image, RED)
    assert long[1] - long[0] == 300 and short == (long[0], long[0] + 150)


def test_parts_of_a_bar_follow_each_other():
    image = page(Bar(((1.0, RED), (0.0, BLUE), (3.0, BLUE))))
    (_legend, red), (blue,) = spans(image, RED), spans(image, BLUE)
    assert red[1] - red[0] == 75 and blue == (red[1], red[1] + 225)


def test_columns_stand_side_by_side_and_all_of_length_0_is_drawn():
    one, two = page(Bar(((0.0, RED),), "0")), page(Bar(((0.0, RED),), "0"), columns=2)
    assert len(spans(one, RED)) == 1  # of the legend
    assert two.shape[1] > 1.4 * one.shape[1] and two.dtype == np.uint8


def test_a_chart_without_groups_is_drawn():
    assert draw_charts([[Chart("points", {}, ())]], title="What?").shape[2] == 3
