import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints import with_vocabulary, write_safetensors
from parity.golden import make_state_dict
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.failures import ExitStatus
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.command
def test_an_archive_is_converted_to_a_model_directory(tmp_path):
    tensors = read_tensors(GOLDEN / "pico_clip_torchscript_fp16.pt")
    source = write_safetensors(tmp_path / "pico.pt", with_vocabulary(tensors))
    done = run("--source", source, "--output", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "122 used, 22 of bookkeeping, 0 others unused" in done.stdout
    variables, card = load_model(tmp_path / "model")
    assert card.architecture.image.layers == (1, 1, 1, 1)
    assert variables["params"]["text"]["projection"].shape == (16, 8)


def test_a_bare_vit_is_converted_with_the_flag_that_the_error_names(tmp_path, capsys, monkeypatch):
    main = runpy.run_path(str(SCRIPT))["main"]
    tensors = make_state_dict("vit_tiny")
    source = write_safetensors(tmp_path / "vit.pt", with_vocabulary(tensors))
    arguments = ["--source", str(source), "--output", str(tmp_path / "model")]
    text = TextConfig(49408, 77, 64, heads=2, layers=2, activation="gelu")
    preset = CLIPConfig(ViTConfig(16, 3, 128, 2, activation="gelu"), text, Preprocessing(64), 64)
    monkeypatch.setitem(PRESETS, "vit_tiny", preset)
    assert main(arguments) == ExitStatus.ERROR
    printed = capsys.readouterr().err
    assert "choose --preset of vit_tiny (gelu)" in printed and printed.count("\n") == 1
    assert main([*arguments, "--preset", "vit_tiny"]) == 0
    assert "architecture: vit_tiny" in capsys.readouterr().out


@pytest.mark.command
def test_embeddings_and_names_are_converted_to_a_vocabulary(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("zebra\ngiraffe\nkite\n")
    done = run(
        "--vocabulary", GOLDEN / "embeddings.pth", "--names", names, "--output", tmp_path / "out"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    vocabulary = Vocabulary.load(tmp_path / "out" / "vocabulary.npz")
    expected = np.arange(24, dtype=np.float32).reshape(3, 8)
    np.testing.assert_array_equal(vocabulary.embeddings, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((GOLDEN / "pico_clip.pth").read_bytes()[:10_000], "download"),
        (b"<html>404 Not Found</html>", "download"),
        (None, "No such file"),
    ],
    ids=["cut", "a page", "missing"],
)
def test_a_file_that_is_no_archive_is_a_one_line_error_with_name_and_remedy(
    tmp_path, capsys, content, message
):
    main = runpy.run_path(str(SCRIPT))["main"]
    source = tmp_path / "RN50.pt"
    if content is not None:
        source.write_bytes(content)
    status = main(["--source", str(source), "--output", str(tmp_path / "model")])
    assert status == (ExitStatus.MISSING if content is None else ExitStatus.ERROR)
    printed = capsys.readouterr().err
    assert "RN50.pt" in printed and message in printed and printed.count("\n") == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --source, --localizer"),
        (["--vocabulary", "a"], "go together"),
        (["--vocabulary", "a", "--names", "b", "--text-from", "c"], "needs --source"),
        (["--localizer", "a", "--preset", "ViT-B-32"], "need --source"),
        (["--source", "a", "--preset", "ViT-B-32", "--activation", "gelu"], "not allowed with"),
    ],
)
def test_contradictory_arguments_are_refused(tmp_path, capsys, arguments, message):
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "model"), *arguments])
    assert message in capsys.readouterr().err
