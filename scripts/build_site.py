#!/usr/bin/env python3
"""Build the documentation site in build/site. Needs the extra docs.

    python scripts/build_site.py

The pages are the Markdown files of the repository, in their folders, so that a link that works
there works on the site. A broken link, heading or reference, a page that the navigation of
zensical.toml lacks, and a page that loads something from another host end the build.
"""

import argparse
import html.parser
import shutil
import subprocess
import sys
import tomllib
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Pages, and the files that they link to.
CONTENT = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs",
    "examples/detect.ipynb",
    "examples/own_detector.ipynb",
    "examples/pretrain_own_captions.ipynb",
    "tests/golden/README.md",
    "third_party/NOTICE",
)


def main(arguments: list[str] | None = None) -> int:
    """Build the site and return the exit status."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    with open(ROOT / "zensical.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    pages, site = ROOT / project["docs_dir"], ROOT / project["site_dir"]
    gather(pages)
    problems = [
        f"zensical.toml: the navigation lacks {page}"
        for page in sorted(set(markdown_files(pages)) - set(pages_of(project["nav"])))
    ]
    if not problems:
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        print(done.stderr, end="", file=sys.stderr)
        if done.returncode:
            return done.returncode
        if "griffe: " in done.stderr:  # Zensical does not count these as warnings.
            problems = ["docstrings do not fit their signatures, see above"]
        for path in sorted(site.rglob("*.html")):
            problems += [f"{path.relative_to(site)}: {text}" for text in problems_of(path, site)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"site: {site / 'index.html'}")
    return 1 if problems else 0


def problems_of(page: Path, site: Path) -> list[str]:
    """Return the links of a built page to missing files, and what it loads from another host."""
    parser = _Targets()
    parser.feed(page.read_text())
    problems = []
    for tag, target in parser.found:
        address = urllib.parse.urlsplit(target)
        if address.scheme or address.netloc:
            if tag != "a":
                problems.append(f"<{tag}> loads {target} from another host")
        elif address.path:
            # The page of missing addresses is served anywhere, so its paths begin at the root.
            folder = site if address.path.startswith("/") else page.parent
            if not (folder / urllib.parse.unquote(address.path).lstrip("/")).exists():
                problems.append(f"{target} is no file; does CONTENT of build_site.py lack it?")
    return problems


class _Targets(html.parser.HTMLParser):
    """Collect the tags of a page with the addresses that they name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, text) for name, text in attrs if name in ("href", "src") and text]


def gather(pages: Path) -> None:
    """Copy the content to a folder, in place of an earlier copy."""
    shutil.rmtree(pages, ignore_errors=True)
    for name in CONTENT:
        target = pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target)
        else:
            shutil.copy(ROOT / name, target)


def markdown_files(pages: Path) -> Iterator[str]:
    """Return the Markdown files of a folder, as paths below it."""
    return (str(path.relative_to(pages)) for path in pages.rglob("*.md"))


def pages_of(nav: list | dict | str) -> Iterator[str]:
    """Return the pages of a navigation, in its order."""
    if isinstance(nav, str):
        yield nav
        return
    for part in nav.values() if isinstance(nav, dict) else nav:
        yield from pages_of(part)


if __name__ == "__main__":
    sys.exit(main())
