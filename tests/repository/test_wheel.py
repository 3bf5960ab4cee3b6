"""The wheel of a package index, unpacked without the repository."""

import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.command

ROOT = Path(__file__).parents[2]
# Files that the build reads. The tests copy them, because a build writes into the source folder
# and reuses files of earlier builds.
SOURCES = (
    "regionclip_jax", "configs", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE",
    "third_party",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=skip)
        else:
            shutil.copy(source, target)
    # No isolation avoids downloads, and no cache avoids earlier builds.
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    build += ["--no-index", "--no-cache-dir", "--wheel-dir", folder / "dist", folder / "source"]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def run(unpacked, tmp_path_factory):
    """Run code in an empty folder that imports the package from the unpacked wheel."""

    def python(code: str) -> str:
        start = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
        done = subprocess.run(
            [sys.executable, "-I", "-c", start + code],
            cwd=tmp_path_factory.mktemp("elsewhere"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return python


def test_the_wheel_contains_exactly_the_files_of_the_package(wheel):
    package = ROOT / "regionclip_jax"
    files = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= {f"regionclip_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    folders = {file.split("/")[1] for file in files if file.count("/") > 1}
    assert {"ops", "models", "jobs", "data", "text"} <= folders
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == files


def test_every_folder_of_the_package_has_a_docstring():
    for folder in (ROOT / "regionclip_jax").rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__":
            assert (folder / "__init__.py").read_text().startswith('"""'), folder


def test_the_wheel_has_its_licence_notice_and_requirements(unpacked):
    (info,) = unpacked.glob("*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert metadata["Name"] == "regionclip_jax" and metadata["Requires-Python"] == ">=3.11"
    held = {path.name: path.read_text() for path in info.rglob("*") if path.is_file()}
    assert held["LICENSE"] == (ROOT / "LICENSE").read_text()
    assert held["NOTICE"] == (ROOT / "third_party" / "NOTICE").read_text()
    needed = {
        re.split("[<>=]", name)[0] for name in metadata.get_all("Requires-Dist") if ";" not in name
    }
    assert {"jax", "flax", "optax", "orbax-checkpoint", "grain", "pillow"} <= needed
    assert not needed & {"torch", "tensorflow"}


def test_text_is_tokenised_without_a_file_of_the_repository(run):
    code = """
import regionclip_jax
from regionclip_jax.text.prompts import TEMPLATES, prompts_for
from regionclip_jax.text.tokenizer import tokenizer_named
print(regionclip_jax.__file__)
tokenize = tokenizer_named("clip")
print(*tokenize(["a photo of a cat"], 77)[0, :8].tolist(), len(prompts_for("cat", TEMPLATES)))
"""
    path, ids = run(code).splitlines()
    assert "unpacked" in path
    # These ids are those of the published CLIP tokenizer.
    assert ids == "49406 320 1125 539 320 2368 49407 0 81"


def test_the_device_side_imports_no_framework_of_the_host(run):
    code = """
import importlib, pkgutil
for folder in ("ops", "models", "losses", "steps"):
    package = importlib.import_module(f"regionclip_jax.{folder}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
print("regionclip_jax.steps.pretrain_step" in sys.modules)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    imported, names = run(code).splitlines()
    assert imported == "True"
    forbidden = {"tensorflow", "torch", "grain", "clu", "orbax"}
    assert not forbidden & set(names.split())


def test_recipes_are_read_in_any_folder(run):
    code = """
from regionclip_jax import recipes
settings = recipes.read("configs/pretrain.py:rn50_coco", ["--config.run.num_steps=7"])
print(settings.job, settings.run.num_steps, settings.regions.num_regions)
try:
    recipes.load("configs/pretain.py")
except recipes.ConfigError as error:
    print(error)
"""
    settings, error = run(code).splitlines()
    assert settings == "pretrain 7 100"
    assert "'configs/pretain.py' cannot be read" in error and "configs/pretrain.py" in error


def test_the_command_runs_from_the_wheel(run):
    code = """
import runpy
sys.argv = ["regionclip_jax.main", "--helpfull"]
try:
    runpy.run_module("regionclip_jax.main", run_name="__main__")
except SystemExit as error:
    print("exit status", error.code)
"""
    output = run(code)
    assert "--workdir" in output and "exit status 1" in output
