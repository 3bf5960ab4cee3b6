"""Locks, the NOTICE and setup.cfg state the same packages."""

import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
NOTICE = ROOT / "third_party" / "NOTICE"
# Names of licences in the metadata of packages, as SPDX expressions.
SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "FreeBSD": "BSD-2-Clause",
    "ISC license": "ISC",
    "MIT Licence": "MIT",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
# Read in the licence files of packages whose metadata do not name the licence.
WITHOUT_METADATA = {
    "databricks-sdk": "Apache-2.0",
    "faster-coco-eval": "Apache-2.0",
    "gitdb": "BSD-3-Clause",
    "ipython-pygments-lexers": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "mergedeep": "MIT",
    "mlflow-skinny": "Apache-2.0",
    "nest-asyncio2": "BSD-2-Clause",
    "prompt-toolkit": "BSD-3-Clause",
    "ptyprocess": "ISC",
    "pyasn1-modules": "BSD-2-Clause",
    "scipy": "BSD-3-Clause",
    "sqlparse": "BSD-3-Clause",
}


def setup() -> ConfigParser:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings


def requirements(extra: str = "") -> list[Requirement]:
    """Return the core requirements of setup.cfg, and those of an extra."""
    settings = setup()
    lines = settings["options"]["install_requires"]
    if extra:
        lines += settings["options.extras_require"][extra]
    return [Requirement(line) for line in lines.split("\n") if line]


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each package of a lock, by its canonical name."""
    packages = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / "locks" / f"{name}.txt").read_text())[1:]:
        first, *rest = entry.rstrip().replace(" \\\n", "\n").split("\n")
        package, version = first.split(";")[0].strip().split("==")
        assert package == canonicalize_name(package) and package not in packages
        packages[package] = version, [line.strip() for line in rest]
    return packages


def locks() -> list[str]:
    return sorted(path.stem for path in (ROOT / "locks").glob("*.txt"))


@pytest.mark.parametrize("name", locks())
def test_every_locked_version_has_the_hashes_of_its_files(name):
    packages = locked(name)
    assert packages
    for package, (_, hashes) in packages.items():
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), package
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert not re.search(r"://|--index|--find|(?m:^\s*-[^-])", text)


@pytest.mark.parametrize("name", sorted(set(locks()) - {"build"}))
def test_locked_versions_are_within_the_ranges_of_setup_cfg(name):
    packages = locked(name)
    for requirement in requirements("" if name == "core" else name):
        version, _ = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (requirement, version)


def test_locks_agree_on_versions():
    """Extras can be installed over each other."""
    versions = {}
    for name in locks():
        for package, (version, hashes) in locked(name).items():
            assert versions.setdefault(package, (version, hashes)) == (version, hashes)


def test_the_build_system_is_locked():
    (required,) = re.findall(r'requires = \["(.*)"\]', (ROOT / "pyproject.toml").read_text())
    requirement = Requirement(required)
    assert requirement.specifier.contains(locked("build")[requirement.name][0])


def licence(package: str) -> tuple[str, str] | None:
    """Return the version and the licence of an installed package, None if it is not installed."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        return None
    metadata = installed.metadata
    stated = (metadata.get("License") or "").split("\n")[0]
    classifiers = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    names = [metadata.get("License-Expression"), stated, *classifiers]
    name = WITHOUT_METADATA.get(package) or next(name for name in names if name)
    return installed.version, SPDX.get(name, name)


def test_the_notice_states_the_licence_of_every_package():
    """A failure prints the lines as they should be."""
    order = ["core", "build", "test", "docs", "types", "gpu", "tpu"]
    assert sorted(order) == locks()
    ranges = {
        canonicalize_name(requirement.name): str(requirement.specifier)
        for name in ["", "test", "docs", "types"]
        for requirement in requirements(name)
    }
    lines = [
        re.split(r"\s{2,}", line.strip())
        for line in NOTICE.read_text().split("SPDX licence.\n")[1].splitlines()
        if line.startswith("  ")
    ]
    stated = {line[0]: line[-1] for line in lines}
    first_lock, versions = {}, {}
    for name in order:
        for package, (version, _) in locked(name).items():
            first_lock.setdefault(package, name)
            versions[package] = version
    expected = []
    for package in sorted(first_lock):
        found = licence(package)
        # Other versions may state the same licence in other words.
        if found is None or found[0] != versions[package]:
            found = "", stated.get(package, "UNKNOWN")
        expected.append(
            [package, ranges.get(package) or "any", first_lock[package], found[1]],
        )
    if lines != expected:
        print("\n".join(f"  {a + '  ':26}{b:20}{c:7}{d}" for a, b, c, d in expected))
    assert lines == expected
