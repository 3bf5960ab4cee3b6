"""Exported programs detect what the package detects, without the package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

import regionclip_jax
from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.commands.export import main as export
from regionclip_jax.export.programs import detection_program
from regionclip_jax.export.stablehlo import write_stablehlo

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
SIDE = 96
NAMES = ["cat", "remote control", "tree"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, nano_variables, nano_configs, nano_localizer):
    directory = tmp_path_factory.mktemp("programs") / "nano"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    save_localizer(directory, variables, card)
    return directory


@pytest.fixture(scope="module")
def model(directory):
    return regionclip_jax.load(directory, short_side=SIDE, max_long_side=SIDE)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((60, 90), (200, 130))]


def require_equal(outputs, found) -> None:
    boxes, scores, classes = map(np.asarray, outputs)
    real = scores > 0
    assert len(found) > 3 and real.sum() == len(found)
    np.testing.assert_array_equal(classes[real], found.classes)
    np.testing.assert_allclose(scores[real], found.scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(boxes[real], found.boxes, rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parity
def test_a_program_detects_what_the_package_detects(model, images, tmp_path, canvas_inputs):
    pytest.importorskip("flatbuffers")
    vocabulary = model.vocabulary(NAMES, templates="plain")
    settings = dict(score_threshold=0.0, max_detections=20, num_proposals=30)
    for classes in (vocabulary, 5):
        program = detection_program(model, classes, SIDE, **settings)
        path, beside = write_stablehlo(model, program, tmp_path / "detector.stablehlo")
        loaded = jax.export.deserialize(bytearray(path.read_bytes()))
        assert set(loaded.platforms) == {"cpu", "cuda", "tpu"}
        more = [] if classes is vocabulary else [np.pad(vocabulary.embeddings, ((0, 2), (0, 0)))]
        for image in images:
            outputs = loaded.call(*canvas_inputs(image, SIDE), *more)
            require_equal(outputs, model.detect(image, vocabulary, **settings))
        about = json.loads(beside.read_text())
        assert [one["shape"] for one in about["inputs"]] == [list(x.shape) for x in loaded.in_avals]
        assert about["names"] == (NAMES if classes is vocabulary else None)
        assert about["calling_convention_version"] == loaded.calling_convention_version
        assert about["package"] == f"regionclip_jax {regionclip_jax.__version__}"
        assert about["preprocessing"]["mean"] == list(model.config.preprocessing.mean)
        assert about["weights"]["parameters_sha256"] == model.card.parameters_sha256


def test_a_program_that_cannot_be_is_refused(model, nano_variables, nano_configs, tmp_path, capsys):
    with pytest.raises(CheckpointMismatch, match="expected a multiple of 32 pixels, found 100"):
        detection_program(model, 3, 100)
    with pytest.raises(ValueError, match="--num_names: expected 1 or more, found 0"):
        detection_program(model, 0, SIDE)
    with pytest.raises(ValueError, match="--score: expected 0 or more, found -1"):
        detection_program(model, 3, SIDE, score_threshold=-1.0)
    with pytest.raises(CheckpointMismatch, match="ends in .stablehlo, found .*detector.bin"):
        write_stablehlo(model, detection_program(model, 3, SIDE), tmp_path / "detector.bin")
    save_model(tmp_path / "bare", nano_variables("vit"), ModelCard(nano_configs["vit"], {}))
    with pytest.raises(CheckpointMismatch, match="has no localizer"):
        detection_program(regionclip_jax.load(tmp_path / "bare"), 3, SIDE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "openclip", "--names", "cat"], "--names: expected --format stablehlo"),
        (["--format", "stablehlo", "--vocabulary", "input"], "--num_names go together"),
        (["--format", "stablehlo", "--vocabulary", "input", "--num_names", "3", "--names", "cat"],
         "--names: expected none"),
    ],
)  # fmt: skip
def test_options_of_other_formats_are_refused(flags, message, directory, capsys):
    with pytest.raises(SystemExit):
        export([str(directory), "--output", "unused", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.command
def test_the_documented_lines_run_without_the_package(directory, model, images, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    Image.fromarray(images[0]).save(tmp_path / "photo.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    flags = [
        "--names-file",
        tmp_path / "names.txt",
        "--size",
        SIDE,
        "--score",
        0,
        "--max_boxes",
        20,
    ]
    output = tmp_path / "detector.stablehlo"
    arguments = [directory, "--format", "stablehlo", "--output", output, *flags]
    assert export([*map(str, arguments)]) == 0
    assert "detector.json" in capsys.readouterr().out
    (code,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        if "jax.export.deserialize" in code
    ]
    code = code.replace("photo.jpg", "photo.png").replace("score > 0.5", "score > 0")
    blocked = "import sys\nsys.modules['regionclip_jax'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = model.detect(images[0], NAMES, score_threshold=0.0, max_detections=20)
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    assert len(lines) == len(found)
    assert [line.split(" [")[0] for line in lines] == list(found.names)
