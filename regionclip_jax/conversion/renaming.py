"""Tables of names that are read in both directions: into this package, and out of it.

In a pattern ``*`` is one part of a dotted name, or a piece of one, and ``**`` is any rest. The
n-th star of one side stands for the text of the n-th star of the other side.
"""

import functools
import re
from collections.abc import Sequence

Pairs = Sequence[tuple[str, str]]
_STARS = re.compile(r"(\*\*|\*)")


class Renaming:
    """Pairs of patterns; the first pair that matches a name decides.

    Args:
        pairs: (name in the file, name here), with equally many stars.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._inwards = [(_expression(theirs), _template(ours)) for theirs, ours in pairs]
        self._outwards = [(_expression(ours), _template(theirs)) for theirs, ours in pairs]

    def inwards(self, name: str) -> str | None:
        """Return this package's name of a file's tensor, or None."""
        return _renamed(self._inwards, name)

    def outwards(self, name: str) -> str | None:
        """Return the file's name of a tensor of this package, or None."""
        return _renamed(self._outwards, name)


def _renamed(rules: list[tuple[re.Pattern, str]], name: str) -> str | None:
    for expression, template in rules:
        if match := expression.fullmatch(name):
            return template.format(*match.groups())
    return None


@functools.cache
def _expression(pattern: str) -> re.Pattern:
    stars = {"*": r"([^.]+)", "**": r"(.+)"}
    return re.compile("".join(stars.get(part) or re.escape(part) for part in _STARS.split(pattern)))


def _template(pattern: str) -> str:
    return _STARS.sub("{}", pattern)
