"""Every command of the README and the documents is parsed in a folder laid out as they say.

``tests/commands/test_documented_commands.py`` runs those that a test can run.
"""

import argparse
import functools
import importlib
import os
import runpy
import typing
from pathlib import Path

import pytest
from absl import flags

import regionclip_jax.main  # noqa: F401  (its flags)
from documented_commands import ROOT, Command, find_commands
from regionclip_jax import recipes
from regionclip_jax.settings import as_plain

COMMANDS = find_commands()
# Commands that a test cannot parse, by their first words, with the reason.
OTHERS = {
    "scripts/quickstart.sh": "installs; test_launchers.py runs it with stand-ins",
    "scripts/test.sh": "runs these tests",
    "scripts/check_accelerator.sh": "test_check_accelerator.py runs it",
    "scripts/lock.sh": "needs a package index",
    "scripts/tpu_pod.sh": "needs Google Cloud; test_launchers.py runs it with stand-ins",
    "sbatch": "needs Slurm; test_launchers.py runs the script with stand-ins",
    "regionclip COMMAND": "stands for any command",
    "regionclip serve": "runs until Ctrl-C; test_serve.py runs it",
    "docker": "needs a container engine and a GPU",
    "pip": "needs a package index",
    "python -m pip": "needs a package index",
    "python3 -m venv": "makes an environment",
    ".venv/bin/": "a tool of developers, which the CI runs",
    "img2dataset": "another project's command, which downloads",
    "curl": "downloads, or asks a server",
    **dict.fromkeys(("mkdir", "cd", "unzip", "rm", "sed", "export"), "of the shell"),
}
# Placeholders of a reader's own paths.
PLACEHOLDERS = {"FILE", "DIR", "MODE", "COMMAND", "..."}
# Options that name a file or folder to read, by script; --output names one to write.
INPUTS = {
    "benchmark": ["path"],
    "benchmark_text": ["captions"],
    "build_concepts": ["captions"],
    "build_site": [],
    "convert_checkpoint": ["source", "trunk", "localizer", "text_from"],
    "detect": ["checkpoint", "images"],
    "doctor": ["directory"],
    "extract_concept_features": ["checkpoint", "concepts"],
    "prepare_data": ["path", "verify"],
}
# Files and folders that the documents tell the reader to bring.
BROUGHT = [
    "RN50.pt", "ViT-B-16.pt", "b32_400m.pt", "rpn_lvis_866.pth", "R-50.pkl", "photos/a.jpg",
    "siglip2/model.safetensors", "siglip2/tokenizer.json",
    "boxes.json", "test.json", "pictures/a.jpg",
    "data/coco/annotations/captions_train2017.json",
    "data/coco/annotations/instances_train2017.json",
    "data/coco/annotations/instances_val2017.json",
    "data/coco/train2017/a.jpg", "data/coco/val2017/a.jpg",
    "data/few/annotations/instances_train2017.json", "data/few/train2017/a.jpg",
    "data/cc3m_tars/00000.tar", "data/cc3m_tsv/images0.tsv",
    # Made by `convert_checkpoint.py --source FILE --localizer FILE --output DIR`.
    "checkpoints/regionclip_rn50/card.json",
]  # fmt: skip
_PATH_KEYS = {"path", "init_from", "localizer", "names_file", "annotations", "vocabulary"}


class Parsed(Exception):
    """Raised in place of running a command, with its options."""


def reason_not_parsed(command: Command) -> str | None:
    line = " ".join(command.words)
    return next((why for start, why in OTHERS.items() if line.startswith(start)), None)


def subcommand(command: Command) -> str | None:
    """Return the module of `regionclip NAME`, for the commands that no script has."""
    if command.words[0] != "regionclip" or len(command.words) < 2:
        return None
    return {"export": "export", "push": "push"}.get(command.words[1])


@functools.cache
def parse(command: Command) -> argparse.Namespace:
    """Return the options of a Python script, as its own parser reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        main = runpy.run_path(str(ROOT / "scripts" / f"{command.script}.py"))["main"]
    return parsed_by(main, command.arguments)


def parsed_by(main: typing.Callable, arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command's function, which does not run."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments):
        raise Parsed(real(self, *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Parsed) as caught:
            main(arguments)
    return caught.value.args[0]


def paths_of(settings: typing.Any) -> list[str]:
    """Return the paths that a recipe with its assignments reads."""
    found = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += list(value.values()) if key == "models" else paths_of(value)
        elif isinstance(value, list | tuple):
            found += [path for part in value if isinstance(part, dict) for path in paths_of(part)]
        elif key in _PATH_KEYS and value:
            found.append(value)
    return found


def outputs() -> list[str]:
    """Return what the documented commands write."""
    written = []
    for command in COMMANDS:
        if command.is_main:
            folders = [w.partition("=")[2] for w in command.words if w.startswith("--workdir=")]
            written += [f"{folder}/model/card.json" for folder in folders]
        elif command.script and "--output" in command.words:
            written.append(parse(command).output)
    return [str(path) for path in written if path not in PLACEHOLDERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with all files that the documents name, empty."""
    root = tmp_path_factory.mktemp("reader")
    for name in [*BROUGHT, *outputs()]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
    return root


def ids(command: Command) -> str:
    return f"{Path(command.document).stem}-{command.script or command.words[-1][:30]}"


def require_present(folder: Path, paths: list[str], command: Command) -> None:
    for path in paths:
        named = path in PLACEHOLDERS or (folder / path).exists()
        assert named, f"{command} reads {path!r}, which no reader has and no command writes"


def test_every_command_is_parsed_or_has_a_reason_not_to_be():
    assert len(COMMANDS) > 60
    for command in COMMANDS:
        if command.is_main or command.is_fragment or command.script or subcommand(command):
            continue
        assert reason_not_parsed(command), f"{command}: add a parser or a reason"
        if command.words[0].startswith("scripts/"):
            assert os.access(ROOT / command.words[0], os.X_OK), command
    for start in OTHERS:
        lines = [" ".join(command.words) for command in COMMANDS]
        assert any(line.startswith(start) for line in lines), f"no document has {start!r}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.is_main or c.is_fragment], ids=ids)
def test_a_documented_recipe_resolves_in_any_folder_and_its_files_are_known(
    command, folder, monkeypatch
):
    monkeypatch.chdir(folder)
    words = command.arguments if command.is_main else list(command.words)
    rest, assignments = recipes.split_assignments(words)
    given = dict(word.removeprefix("--").partition("=")[::2] for word in rest)
    for name, text in given.items():
        flags.FLAGS[name].parser.parse(text or True)
    recipe = given.get("config", "configs/pretrain.py:rn50_coco")
    if recipe in PLACEHOLDERS:
        return
    settings = recipes.read(recipe, assignments)
    if command.is_fragment:
        require_present(folder, paths_of({"data": as_plain(settings.data)}), command)
    elif not settings.job.startswith("scenes_") and "describe" not in given:
        require_present(folder, paths_of(as_plain(settings)), command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.script], ids=ids)
def test_a_documented_script_parses_and_its_files_are_known(command, folder):
    if set(command.words) & {"MODE", "--help"}:
        return
    options = parse(command)
    for name in INPUTS[command.script]:
        value = getattr(options, name, None)
        paths = value if isinstance(value, list) else [value] if value else []
        require_present(folder, [str(path) for path in paths], command)


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if subcommand(c) and len(c.words) > 2], ids=ids
)
def test_a_documented_subcommand_parses(command):
    module = importlib.import_module(f"regionclip_jax.commands.{subcommand(command)}")
    parsed_by(module.main, list(command.words[2:]))


def test_a_path_that_nothing_writes_and_a_wrong_option_are_found(folder):
    with pytest.raises(AssertionError, match=r"reads 'data/none', which no reader has"):
        require_present(folder, ["data/none"], COMMANDS[0])
    wrong = Command("a document", ("python", "scripts/detect.py", "--checkpoints", "a"))
    with pytest.raises(SystemExit):
        parse(wrong)
