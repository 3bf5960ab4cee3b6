"""Command lines of the README and the documents."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md")),
]
MAIN = ["python", "-m", "regionclip_jax.main"]
_OURS = ("python -m regionclip_jax", "python scripts/", "scripts/", "regionclip ")


@dataclasses.dataclass(frozen=True)
class Command:
    """Words of one command line, and the document that shows it."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"

    @property
    def is_main(self) -> bool:
        return list(self.words[:3]) == MAIN

    @property
    def is_fragment(self) -> bool:
        """Flags to add to another command."""
        return self.words[0].startswith("--config.")

    @property
    def script(self) -> str | None:
        """Name of the Python script."""
        path = self.words[1] if self.words[0] == "python" and len(self.words) > 1 else self.words[0]
        match = re.fullmatch(r"scripts/(\w+)\.py", path)
        return match and match[1]

    @property
    def arguments(self) -> list[str]:
        """Arguments after the script, or after the module."""
        first = 3 if self.is_main else 2 if self.words[0] == "python" else 1
        return list(self.words[first:])


def find_commands() -> list[Command]:
    """Return the commands of all bash blocks, and those of the package in running text."""
    return [
        Command(path.relative_to(ROOT).as_posix(), tuple(words))
        for path in DOCUMENTS
        for words in _of_document(path.read_text())
    ]


def _of_document(text: str) -> Iterator[list[str]]:
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s&&\s", line):
                if words := shlex.split(part, comments=True):
                    yield words
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for line in re.findall(r"`([^`\n]+)`", outside):
        if line.startswith(_OURS) and " " in line:
            yield shlex.split(line.replace("[", "").replace("]", ""))
