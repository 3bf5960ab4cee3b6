import io

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.reporting import drawing, galleries
from regionclip_jax.reporting.drawing import COLOURS, Mark, score_text
from regionclip_jax.settings import DetectionSettings

GREY = np.full((60, 80, 3), 128, np.uint8)


def has(image, colour):
    return (image == np.array(colour, np.uint8)).all(-1)


def test_boxes_are_scaled_with_an_enlarged_image():
    annotated = drawing.draw_marks(GREY, [Mark((10, 20, 40, 50), "", "right")], width=320)
    assert annotated.shape == (240, 320, 3)
    ys, xs = np.nonzero(has(annotated, COLOURS["right"]))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (40, 80, 159, 199)
    assert (annotated[140, 100] == 128).all()  # the inside stays visible


def test_the_given_image_is_not_changed():
    before = GREY.copy()
    annotated = drawing.draw_marks(GREY, [Mark((10, 20, 40, 50), "cup")])
    np.testing.assert_array_equal(GREY, before)
    assert annotated.shape == GREY.shape and (annotated != GREY).any()


def test_wrong_boxes_are_dashed_with_closed_corners():
    solid = has(drawing.draw_marks(GREY, [Mark((5, 5, 75, 55), "", "right")]), COLOURS["right"])
    dashed = has(drawing.draw_marks(GREY, [Mark((5, 5, 75, 55), "", "wrong")]), COLOURS["wrong"])
    assert 0.3 < dashed.sum() / solid.sum() < 0.75
    for y, x in [(5, 5), (5, 74), (54, 5), (54, 74)]:
        assert solid[y, x] and dashed[y, x]


@pytest.mark.parametrize(
    "box",
    [(0, 0, 80, 60), (-20, -20, 500, 500), (70, 2, 80, 8), (30, 30, 30, 30), (90, 90, 99, 99)],
)
def test_labels_stay_on_the_image_for_any_box(box):
    annotated = drawing.draw_marks(GREY, [Mark(box, "cup 0.9", "right")], width=400)
    assert has(annotated, COLOURS["right"]).sum() > 300


def test_labels_of_the_same_box_do_not_cover_each_other():
    box = (10, 25, 60, 50)
    one = drawing.draw_marks(GREY, [Mark(box, "cup", "right")], width=400)
    two = drawing.draw_marks(
        GREY, [Mark(box, "cup", "right"), Mark(box, "cup", "right")], width=400
    )
    added = has(two, COLOURS["right"]).sum() - has(one, COLOURS["right"]).sum()
    assert added > 400  # the second label has a separate position


def test_invalid_images_are_refused():
    with pytest.raises(ValueError, match=r"found float32 \[4, 4, 3\]"):
        drawing.draw_marks(np.zeros((4, 4, 3), np.float32), [])
    with pytest.raises(ValueError, match=r"found uint8 \[4, 4\]"):
        drawing.draw_marks(np.zeros((4, 4), np.uint8), [])


def example(kind="right", image=GREY):
    marked = galleries.Panel(image, (Mark((10, 20, 40, 50), "cup", kind),))
    return [galleries.Panel(image), marked]


def page(examples, **options):
    return galleries.draw_gallery(
        examples, columns=("teacher", "student"), title="Boxes", **options
    )


def test_a_page_grows_by_rows_and_shows_every_image():
    small, large = page([example()] * 2), page([example()] * 4)
    assert small.shape[1] == large.shape[1] and small.shape[0] < large.shape[0]
    shown = [has(p, (128, 128, 128)).sum() / (300 * 225) for p in (small, large)]
    assert shown[1] == pytest.approx(2 * shown[0], rel=0.02) and shown[0] > 2.5


def test_images_of_several_shapes_share_a_page():
    tall = np.full((100, 50, 3), 128, np.uint8)
    mixed = page([example(), example(image=tall), example()])
    assert mixed.shape[0] > page([example()] * 3).shape[0]


def test_a_long_title_is_not_cut_and_a_long_subtitle_takes_more_lines():
    plain = page([example()])
    assert page([example()], subtitle="x y" * 300).shape[1] == plain.shape[1]
    heights = [page([example()], subtitle=text).shape[0] for text in ("x", "x " * 90, "x" * 180)]
    assert plain.shape[0] < heights[0] < heights[1] and heights[0] < heights[2]
    annotated = galleries.draw_gallery([example()], columns=("teacher", "student"), title="x" * 300)
    assert annotated.shape[1] > plain.shape[1]


def test_the_columns_of_one_model_fill_the_page():
    alone = galleries.draw_gallery([example()[:1]] * 4, columns=("teacher",), title="Boxes")
    several = page([example()] * 2)
    assert alone.shape[0] == several.shape[0] and alone.shape[1] >= several.shape[1]


def test_an_example_with_another_number_of_panels_is_refused():
    with pytest.raises(ValueError, match="example 1 has 1 panels"):
        page([example(), example()[:1]])
    with pytest.raises(ValueError, match="no examples"):
        page([])


def test_the_file_holds_the_page(tmp_path):
    annotated = page([example("wrong")])
    galleries.write_png(tmp_path / "pictures" / "page.png", annotated)
    content = (tmp_path / "pictures" / "page.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), annotated)


def test_only_a_probability_is_shown_as_a_percentage():
    for objectness, is_probability in (("sigmoid", True), ("none", True), ("reference", False)):
        assert DetectionSettings(objectness=objectness).gives_probabilities == is_probability
    assert DetectionSettings(objectness="reference", report_probabilities=True).gives_probabilities
    assert score_text(0.394, True) == "39%" and score_text(3.94, False) == "3.94"
