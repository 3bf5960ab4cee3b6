"""Write text on images, with fonts that have its letters.

Pillow's own font, which is the same on every machine, has English letters only. Other letters come
from the fonts of the machine. Letters of no font are spelled out, with a warning.
"""

import functools
import itertools
import os
import re
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from absl import logging
from PIL import ImageDraw, ImageFont

# No character has this number, so a font draws it as it draws what it does not have.
_UNKNOWN = "\U0010fffe"
_TRIED_SIZE = 16
_said: set[str] = set()
_saying = threading.Lock()  # threads draw the images of a folder


def text_width(text: str, size: int) -> float:
    """Return the width of a text in pixels."""
    return sum(letters.getlength(part) for part, letters in _runs(text, size))


def text_height(size: int) -> int:
    """Return the height of a line, from the top of its letters to the bottom of a "g"."""
    return sum(_own_font(size).getmetrics())


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill, size: int
) -> None:
    """Draw a text from its left end, at the middle of its height."""
    x, y = place
    for part, letters in _runs(text, size):
        draw.text((x, y), part, fill, font=letters, anchor="lm")
        x += letters.getlength(part)


def spelled_out(character: str) -> str:
    """Return a character in ASCII: its base letter, its sound, its name, or its number."""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    name = unicodedata.name(character, "")
    if plain:
        return plain
    if found := re.match(r"LATIN (SMALL|CAPITAL) LETTER (SHARP )?(\w+)", name):
        letters = found[3] * (2 if found[2] else 1)
        return letters.lower() if found[1] == "SMALL" else letters
    # The names of these characters are their sounds.
    syllable = r"(?:HIRAGANA|KATAKANA|HANGUL) (?:LETTER SMALL|LETTER|SYLLABLE) (\w+)"
    if found := re.match(syllable, name):
        return found[1].lower()
    category = unicodedata.category(character)
    if category in ("Pd", "Pi", "Pf", "Zs"):
        return {"Pd": "-", "Zs": " "}.get(category, "'")
    if category in ("Cf", "Mn"):  # joiners, variants and accents of the character before
        return ""
    if category == "So" and name:
        return f"({name.lower()})"
    return f"[U+{ord(character):04X}]"


def _runs(text: str, size: int) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Yield the parts of a text with their fonts; one part if one font has all letters."""
    text = unicodedata.normalize("NFC", text)
    file = _font_of(text)
    if file is not None:
        yield text, _font(file, size)
        return
    pieces = []
    for character in text:
        file = _font_of(character)
        if file is None:
            _warn(character)
            character, file = spelled_out(character), ""
        pieces.append((file, character))
    for file, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        if part := "".join(character for _, character in group):
            yield part, _font(file, size)


def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return _machine_font(file, size) if file else _own_font(size)


@functools.cache
def _own_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@functools.cache
def _machine_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@functools.lru_cache(4096)
def _font_of(text: str) -> str | None:
    """Return the first font file with all characters; "" is Pillow's own, None is no font."""
    if all(_has("", character) for character in text):
        return ""
    return next((f for f in _font_files() if all(_has(f, character) for character in text)), None)


@functools.lru_cache(2**16)
def _has(file: str, character: str) -> bool:
    if character.isspace():
        return True
    try:
        font = _font(file, _TRIED_SIZE)
    except OSError:  # no font, or one of coloured bitmaps of another size
        return False
    drawn, unknown = font.getmask(character), font.getmask(_UNKNOWN)
    is_unknown = drawn.size == unknown.size and bytes(drawn) == bytes(unknown)
    return drawn.getbbox() is not None and not is_unknown


@functools.cache
def _font_files() -> tuple[str, ...]:
    """Return the font files of the machine: plain sans serif fonts first."""
    home = Path.home()
    if sys.platform == "darwin":
        folders = [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    elif sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        folders = [home / ".local/share/fonts", home / ".fonts"]
        folders += [Path(folder) / "fonts" for folder in shared.split(":")]
    files = {
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    }

    def rank(path: Path) -> tuple:
        name = path.stem.lower()
        is_special = re.search("bold|italic|oblique|light|thin|black|condensed|mono|math", name)
        return is_special is not None, "serif" in name, len(name), str(path)

    return tuple(str(path) for path in sorted(files, key=rank))


def _warn(character: str) -> None:
    """Say once for each script that no font has its letters."""
    name = unicodedata.name(character, "unknown")
    is_letter = unicodedata.category(character).startswith("L")
    script = name.split()[0] if is_letter else "SYMBOL"
    with _saying:
        is_new = script not in _said and spelled_out(character)
        if is_new:
            _said.add(script)
    if is_new:
        logging.warning(
            "labels: no font of this machine has %r (%s); such characters are written as %r. "
            "Install a font that has them, e.g. Noto Sans CJK (fonts-noto-cjk) or Noto Emoji",
            character, name, spelled_out(character),
        )  # fmt: skip
