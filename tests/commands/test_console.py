"""The command `regionclip`: every subcommand has a help text and the function of its script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regionclip_jax import __version__
from regionclip_jax.commands import console

pytestmark = pytest.mark.command

ROOT = Path(__file__).parents[2]


def regionclip(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    code = "import sys; from regionclip_jax.commands.console import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )


def help_of(name: str, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["regionclip", *name.split(), "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    try:
        status = console.main()
    except SystemExit as error:
        status = error.code
    assert not status
    return capsys.readouterr().out


def test_the_overview_names_every_command_and_an_unknown_one_is_refused():
    overview = regionclip()
    assert overview.returncode == 0 and overview.stdout == regionclip("--help").stdout
    named = {line[2:16].strip() for line in overview.stdout.splitlines() if line.startswith("  ")}
    assert named == set(console.COMMANDS)
    assert regionclip("--version").stdout.strip() == __version__
    wrong = regionclip("embed", "everything")
    assert wrong.returncode == 2 and "found 'embed', expected one of: train" in wrong.stderr


@pytest.mark.parametrize("name", console.COMMANDS)
def test_the_help_of_every_command_fits_on_one_screen(name, monkeypatch, capsys):
    text = help_of(name, monkeypatch, capsys)
    assert text.startswith(f"usage: regionclip {name} ")
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    "script, name",
    [
        ("build_concepts", "concepts"), ("convert_checkpoint", "convert"), ("detect", "detect"),
        ("doctor", "doctor"), ("extract_concept_features", "embed names"),
        ("extract_region_features", "embed regions"), ("prepare_data", "prepare"),
        ("compile_for_gpu", "compile"), ("compile_for_tpu", "compile"),
    ],
)  # fmt: skip
def test_a_script_calls_the_function_of_its_subcommand(script, name):
    module = console.COMMANDS[name][0]
    text = (ROOT / "scripts" / f"{script}.py").read_text()
    assert f"from regionclip_jax.commands.{module} import main\n" in text
    assert f"`regionclip {name}`" in text


def test_train_and_evaluate_run_recipes_from_any_folder(tmp_path):
    scenes = "--config=configs/pretrain.py:scenes"
    description = regionclip("train", scenes, "--describe", cwd=tmp_path)
    assert description.returncode == 0, description.stderr
    assert "run.num_steps" in description.stdout
    refused = regionclip("evaluate", scenes, f"--workdir={tmp_path / 'run'}")
    assert refused.returncode == 1 and not (tmp_path / "run").exists()
    assert "is 'scenes_experiment', expected 'evaluate'" in refused.stderr


def test_a_failed_command_has_exit_status_one(tmp_path):
    missing = regionclip("doctor", tmp_path / "absent")
    assert missing.returncode == 1 and "absent" in missing.stdout
    bad_key = regionclip("compile", "--topology=v5e:2x2", "--config=configs/evaluate.py",
                         "--config.nope=3")  # fmt: skip
    assert bad_key.returncode == 1 and "nope" in bad_key.stderr
