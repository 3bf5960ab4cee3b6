"""The version is the same in all files that state it."""

from pathlib import Path

import yaml

import regionclip_jax

ROOT = Path(__file__).resolve().parents[2]


def test_citation_and_changelog_state_the_version_of_the_package():
    version = regionclip_jax.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    headings = [
        line.removeprefix("## ").split()[0]
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    assert headings[:2] == ["Unreleased", version]
