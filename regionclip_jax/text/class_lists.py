"""Class names from users: words with commas, a text file, or an annotation file."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path

from regionclip_jax.text.prompts import prepare_class_name


def read_class_list(given: str) -> tuple[str, ...]:
    """Read class names, stripped, in the order given.

    Args:
        given: ``"cat, remote control"``, or a path ending in ``.txt`` or ``.json``. A ``.txt`` has
            one name per line; a tab and the text after it (a concept's count) are ignored. A
            ``.json`` has ``categories``, such as annotations of COCO or LVIS. Their names are read
            as words (``remote_control`` becomes ``remote control``), by ascending id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no name, an empty one, or one that occurs twice; or JSON without categories.
    """
    path = Path(given)
    if path.suffix not in (".txt", ".json"):
        return check_names(given.split(","), "class list")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a file of class names")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        lines = [line.split("\t")[0] for line in text.splitlines() if line.strip()]
        return check_names(lines, str(path))
    try:
        categories = sorted(json.loads(text)["categories"], key=lambda entry: entry["id"])
        names = [prepare_class_name(entry["name"]) for entry in categories]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected JSON with categories that have id and name, as COCO's and LVIS's "
            f"annotation files do, found {error!r}; give such a file, or names in a .txt"
        ) from error
    return check_names(names, str(path))


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names, stripped; ``where`` names the list in errors.

    Raises:
        ValueError: no name, an empty one, or one that occurs twice; or a string instead of a list.
    """
    if isinstance(names, str):
        raise ValueError(f"{where}: expected a list of names, found the string {names!r}")
    stripped = tuple(name.strip() for name in names)
    twice = sorted(name for name, times in collections.Counter(stripped).items() if times > 1)
    if not stripped or not all(stripped) or twice:
        what = f"{twice[:5]} more than once" if twice else "an empty name" if stripped else "none"
        raise ValueError(f"{where}: expected names that are not empty and differ, found {what}")
    return stripped
