"""Letters and lines of drawn labels: fonts, spelled-out names, scale."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from regionclip_jax.reporting import lettering
from regionclip_jax.reporting.drawing import Mark, draw_marks, letter_size, line_width


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine without fonts, whose warnings were not given yet."""
    monkeypatch.setattr(lettering, "_font_files", lambda: ())
    monkeypatch.setattr(lettering, "_said", set())
    lettering._font_of.cache_clear()
    yield
    lettering._font_of.cache_clear()


@pytest.mark.parametrize(
    ("character", "expected"),
    [("\u00e9", "e"), ("\u00df", "ss"), ("\u00d8", "O"), ("\u306d", "ne"), ("\u30c3", "tu"),
     ("\ud55c", "han"), ("\u2013", "-"), ("\u2019", "'"), ("\u732b", "[U+732B]"),
     ("\u0436", "[U+0436]"), ("\U0001f431", "(cat face)"), ("\u200d", ""), ("\uff11", "1")],
)  # fmt: skip
def test_a_character_is_spelled_out_in_ascii(character, expected):
    assert lettering.spelled_out(character) == expected


def test_names_without_a_font_are_drawn_spelled_out_with_one_warning_for_a_script(no_fonts, caplog):
    def drawn(text):
        image = Image.new("L", (300, 30))
        lettering.draw_text(ImageDraw.Draw(image), (2, 15), text, 255, 14)
        return np.asarray(image)

    names = {"\u732b 87%": "[U+732B] 87%", "\u72ac caf\u00e9": "[U+72AC] cafe"}
    with caplog.at_level("WARNING"):
        for name, spelled in names.items():
            np.testing.assert_array_equal(drawn(name), drawn(spelled))
            assert lettering.text_width(name, 14) == lettering.text_width(spelled, 14)
            assert drawn(name).any()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "'\u732b'" in said[0] and "'\u00e9'" in said[1]
    assert "Noto Sans CJK" in said[0]


def test_a_font_of_the_machine_has_the_letters_that_pillows_lacks():
    file = lettering._font_of("\u0436")
    if not file:
        pytest.skip("no font of this machine has Cyrillic letters")
    assert lettering._has(file, "\u0436") and not lettering._has("", "\u0436")
    assert lettering._font_of("cat") == ""


def test_lines_and_letters_scale_with_the_image():
    """On a screen of 1,000 pixels letters have 13 to 30 pixels and lines 2 to 7."""
    for short in (300, 480, 800, 1080, 2160, 3648):
        size = (short * 3 // 2, short)
        on_screen = min(1.0, 1000 / short)
        assert 13 <= letter_size(size) * on_screen <= 30
        assert 2 <= line_width(size) * on_screen <= 7
    drawn = draw_marks(np.zeros((2000, 3000, 3), np.uint8), [Mark((500, 900, 2500, 1900), "cat")])
    rows = np.flatnonzero(drawn[:, 530].any(-1))
    assert np.ptp(rows[rows < 890]) > 40  # the label above the box
