"""Count the skipped entries of a source by kind, name the first ones, and refuse too many."""

import collections

_NUM_NAMED = 3


class LeftOut:
    """Counter of the skipped entries of one file or folder.

    Attributes:
        report: ``{what}_{kind}`` -> count.
        named: ``{what}_{kind}`` -> first few names.

    Args:
        what: counted entries, in the plural: ``"images"``.
    """

    def __init__(self, what: str):
        self._what = what
        self.report: collections.Counter[str] = collections.Counter()
        self.named: dict[str, list[str]] = {}

    def add(self, kind: str, name: object) -> None:
        """Count one entry of a kind, such as ``"missing"``; ``name`` is for messages."""
        key = f"{self._what}_{kind}"
        self.report[key] += 1
        first = self.named.setdefault(key, [])
        if len(first) < _NUM_NAMED:
            first.append(str(name)[:200])

    def require_few(self, where: object, total: int, fault_fraction: float, remedy: str) -> None:
        """Refuse too many skipped entries: a few are normal, a wrong file is not.

        Args:
            where: the file or folder, for the error.
            total: number of entries, including skipped ones.
            fault_fraction: share of the entries that may be skipped; never all of them.

        Raises:
            ValueError: more entries are skipped.
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
    """Format counts as a line: ``images 12, images missing 2 (a.jpg, b.jpg)``."""
    parts = []
    for key, count in report.items():
        examples = ""
        if first := named.get(key):
            examples = f" ({', '.join(first)}{', ...' if count > len(first) else ''})"
        parts.append(f"{key.replace('_', ' ')} {count}{examples}")
    return ", ".join(parts)
