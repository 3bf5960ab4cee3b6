"""What a source has to leave out: counted by kind, the first of each named, too much refused."""

import collections

_NUM_NAMED = 3


class LeftOut:
    """Counts what cannot be used among the entries of one file or folder.

    Attributes:
        report: ``{what}_{kind}`` -> count.
        named: ``{what}_{kind}`` -> the first few.

    Args:
        what: is counted, in the plural: ``"images"``.
    """

    def __init__(self, what: str):
        self._what = what
        self.report: collections.Counter[str] = collections.Counter()
        self.named: dict[str, list[str]] = {}

    def add(self, kind: str, name: object) -> None:
        """One more of a kind, such as ``"missing"``; ``name`` is for messages."""
        key = f"{self._what}_{kind}"
        self.report[key] += 1
        first = self.named.setdefault(key, [])
        if len(first) < _NUM_NAMED:
            first.append(str(name)[:200])

    def require_few(self, where: object, total: int, fault_fraction: float, remedy: str) -> None:
        """A few broken entries are normal, a wrong file is not.

        Args:
            where: the file or folder, for the error.
            total: number of entries, those left out included.
            fault_fraction: share of them that may be left out; never all of them.

        Raises:
            ValueError: more are left out.
        """
        lost = self.report.total()
        if not lost or (lost < total and lost <= fault_fraction * total):
            return
        raise ValueError(
            f"{where}: {lost} of {total} {self._what} cannot be used, more than a fault_fraction "
            f"of {fault_fraction:.2%} allows: {describe(self.report, self.named)}; {remedy}, or "
            "raise fault_fraction to go on without them"
        )


def describe(report: dict[str, int], named: dict[str, list[str]]) -> str:
    """Counts as a line: ``images 12, images missing 2 (a.jpg, b.jpg)``."""
    parts = []
    for key, count in report.items():
        examples = ""
        if first := named.get(key):
            examples = f" ({', '.join(first)}{', ...' if count > len(first) else ''})"
        parts.append(f"{key.replace('_', ' ')} {count}{examples}")
    return ", ".join(parts)
