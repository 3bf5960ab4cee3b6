"""Links between files of the repository have an existing file and heading as target."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"docs/reference/[\w./-]*")
# Matches [text](target) and [text](target "title"), also of images, and [label]: target.
INLINE_LINK = re.compile(r"\]\(\s*<?([^()\s<>]+)>?(?:\s+[\"'][^)]*[\"'])?\s*\)")
LINK_DEFINITION = re.compile(r"^\s{0,3}\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
FENCE = re.compile(r"^\s*(```|~~~)")


def tracked(*patterns: str) -> list[Path]:
    """Return the tracked and the new files that match the patterns, sorted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"not a git repository: {done.stderr.strip()}")
    paths = {ROOT / name for name in done.stdout.split("\0") if name}
    return sorted(path for path in paths if path.exists())


def without_code_blocks(text: str) -> str:
    """Blank the lines of fenced code blocks and keep the line numbers."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = FENCE.match(line) is not None
        lines.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(lines)


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown file."""
    result, seen = set(), {}
    for line in without_code_blocks(path.read_text()).splitlines():
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading is None:
            continue
        # GitHub takes the text of a link and drops the punctuation of code and emphasis.
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        slug = re.sub(r"[^\w\- ]", "", text.lower().replace("*", "")).replace(" ", "-")
        number = seen.get(slug, 0)
        seen[slug] = number + 1
        result.add(f"{slug}-{number}" if number else slug)
    return frozenset(result)


def link_problem(path: Path, anchor: str) -> str | None:
    """Return the problem of a link target, or None."""
    if not path.exists():
        return "no such file"
    if anchor and (path.suffix != ".md" or anchor not in anchors(path)):
        return f"no heading #{anchor}"
    return None


def problems_of_markdown(path: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", without_code_blocks(path.read_text()))
    problems = []
    for target in INLINE_LINK.findall(text) + LINK_DEFINITION.findall(text):
        if SCHEME.match(target):
            continue
        name, _, anchor = target.partition("#")
        problem = link_problem((path.parent / name).resolve() if name else path, anchor)
        if problem:
            problems.append(f"{path.relative_to(ROOT)}: {target}: {problem}")
    return problems


def problems_of_python(path: Path) -> list[str]:
    problems = []
    for pointer in re.findall(REFERENCE.pattern + r"(?:#[\w-]*)?", path.read_text()):
        name, mark, anchor = pointer.rstrip(".").partition("#")
        problem = link_problem(ROOT / name, anchor)
        if mark and not anchor:
            problem = "no anchor after #"
        if problem:
            problems.append(f"{path.relative_to(ROOT)}: {pointer}: {problem}")
    return problems


def test_links_of_markdown_files_have_a_target():
    files = tracked("*.md")
    assert ROOT / "README.md" in files
    assert [problem for path in files for problem in problems_of_markdown(path)] == []


def test_references_in_code_have_a_heading_as_target():
    # This file has only invented references.
    files = [path for path in tracked("*.py", "*.sh") if path != Path(__file__).resolve()]
    assert [problem for path in files for problem in problems_of_python(path)] == []


def test_broken_links_are_detected(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    folder = tmp_path / "docs" / "reference"
    folder.mkdir(parents=True)
    page = folder / "page.md"
    page.write_text(
        "# Soft-NMS: `a_b` (x)\n## Twice\n## Twice\n```\n# no heading\n[x](lost.md)\n```\n"
        "[a](#twice-1) [b](#twice-2) [c](page.md#soft-nms-a_b-x) [d](lost.md) `[e](lost.md)`\n"
        "[f](https://example.org/#x) [g](#no-heading)\n"
    )
    assert [problem.split(": ", 1)[1] for problem in problems_of_markdown(page)] == [
        "#twice-2: no heading #twice-2",
        "lost.md: no such file",
        "#no-heading: no heading #no-heading",
    ]
    code = tmp_path / "code.py"
    code.write_text(
        "# docs/reference/page.md#twice. docs/reference/page.md#thrice, docs/reference/lost.md#a\n"
        "# docs/reference, docs/reference/page.md# and docs/reference/page.md.\n"
    )
    assert [problem.split(": ", 1)[1] for problem in problems_of_python(code)] == [
        "docs/reference/page.md#thrice: no heading #thrice",
        "docs/reference/lost.md#a: no such file",
        "docs/reference/page.md#: no anchor after #",
    ]
