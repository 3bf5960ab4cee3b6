"""Pages of the documentation site; .ci/run builds it."""

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build_site() -> dict:
    return runpy.run_path(str(ROOT / "scripts" / "build_site.py"))


def test_the_navigation_has_every_page_once(build_site, tmp_path) -> None:
    build_site["gather"](tmp_path)
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    assert [next(iter(group)) for group in project["nav"]] == [
        "Start", "Guides", "Reference", "Background",
    ]  # fmt: skip
    pages = list(build_site["pages_of"](project["nav"]))
    assert sorted(pages) == sorted(build_site["markdown_files"](tmp_path))


def test_missing_files_and_other_hosts_are_found(build_site, tmp_path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "a b.txt").touch()
    page = tmp_path / "docs" / "page.html"
    page.write_text(
        '<a href="../a%20b.txt#x">1</a> <a href="https://example.org/">2</a> <a href="#y">3</a>'
        "<a href=../none.txt>4</a> <img src='https://example.org/a.png'>"
        '<link rel="stylesheet" href="//example.org/a.css"><script src="/a.js"></script>'
    )
    assert build_site["problems_of"](page, tmp_path) == [
        "../none.txt is no file; does CONTENT of build_site.py lack it?",
        "<img> loads https://example.org/a.png from another host",
        "<link> loads //example.org/a.css from another host",
        "/a.js is no file; does CONTENT of build_site.py lack it?",
    ]
