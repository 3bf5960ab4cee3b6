"""Self-check: a model repeats its stored results on a synthetic image, or the doctor fails."""

import base64
import io
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from json_changes import texts_with_another_value
from regionclip_jax import self_check
from regionclip_jax.artifacts import digests
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import load_model, save_model, save_variables

DOCTOR = Path(__file__).parents[1] / "scripts" / "doctor.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory, nano_variables, nano_configs):
    directory = tmp_path_factory.mktemp("models") / "nano"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {"run": "t"}))
    self_check.write(directory)
    return directory


@pytest.fixture
def directory(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "model"))


@pytest.fixture(scope="module")
def doctor():
    return runpy.run_path(str(DOCTOR))["main"]


def test_an_unchanged_model_passes_and_is_printed(directory, doctor, capsys):
    assert doctor([str(directory)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("all is well\n")
    variables, _ = load_model(directory)
    assert "model: CLIPConfig" in printed and "SHA-256" in printed and "jax 0." in printed
    content = json.loads((directory / self_check.FILE_NAME).read_text())
    cosines = np.array(content["cosines"])
    assert cosines.shape == (len(content["boxes"]), 5) and len(cosines) == 3
    assert 0.01 < np.ptp(cosines) and np.abs(cosines).max() <= 1
    # Class probabilities at the temperature of the directory, beside the background's logit 0.
    temperature = float(np.exp(-variables["params"]["logit_scale"]))
    powers = np.exp(cosines / temperature)
    expected = powers / (1 + powers.sum(1, keepdims=True))
    np.testing.assert_allclose(content["scores"], expected, atol=1e-4)


def test_a_run_writes_the_self_checks_that_are_missing_or_of_other_weights(
    written, tmp_path, monkeypatch
):
    """The models of the scenes lie one folder deeper than that of a single training."""
    folders = ("model", "teacher/model", "student/model", "localizer/model", "too/deep/model")
    models = {name: tmp_path / name for name in folders}
    for name, folder in models.items():
        folder.mkdir(parents=True)
        for file in () if name == "localizer/model" else ("card.json", self_check.FILE_NAME):
            shutil.copy(written / file, folder / file)
    (models["teacher/model"] / self_check.FILE_NAME).unlink()
    stale = models["student/model"] / self_check.FILE_NAME
    stale.write_text(json.dumps(json.loads(stale.read_text()) | {"parameters_sha256": "0"}))
    wrote = []
    monkeypatch.setattr(self_check, "write", wrote.append)
    self_check.write_missing(tmp_path)
    assert wrote == [models["student/model"], models["teacher/model"]]


def test_a_model_without_a_self_check_passes(directory, doctor, capsys):
    (directory / self_check.FILE_NAME).unlink()
    assert doctor([str(directory)]) == 0
    assert "none was written" in capsys.readouterr().out


def test_changed_weights_fail_and_the_last_line_names_the_model(directory, doctor, capsys):
    variables, card = load_model(directory)
    variables["params"]["visual"]["layer4"]["block0"]["conv2"]["kernel"] *= 1.5
    save_model(directory, variables, card)
    assert doctor([str(directory)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"wrong: {directory}") and "convert or copy the model again" in last
    assert doctor(["--write", str(directory)]) == 0


def test_a_tensor_that_is_not_finite_is_named_by_the_doctor(directory, doctor, capsys):
    variables, _ = load_model(directory)
    variables["params"]["logit_scale"] = np.full((), np.nan, np.float32)
    save_variables(directory / "params", variables)
    (directory / digests.FILE_NAME).unlink()  # as in directories of versions up to 0.2.0
    assert doctor([str(directory)]) == 1
    wrong = capsys.readouterr().out.split("wrong: ")[1]
    assert wrong.startswith(str(directory)) and "params/logit_scale" in wrong


def test_the_doctor_examines_a_directory_with_a_localizer_alone(
    nano_localizer, tmp_path, doctor, capsys
):
    card, variables = nano_localizer
    save_localizer(tmp_path, variables, card)
    assert doctor([str(tmp_path)]) == 0
    assert "a localizer alone" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"format": 2}'])
def test_an_invalid_self_check_is_refused_with_the_remedy(directory, content):
    path = directory / self_check.FILE_NAME
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointMismatch, match="doctor.py --write"):
        self_check.compare(directory)


@pytest.mark.parametrize("key", ["boxes", "cosines", "picture", "names"])
def test_a_flipped_bit_of_a_self_check_is_refused_with_the_remedy(directory, key):
    """The bit makes a comma of a point, or another character of the image or a name."""
    path = directory / self_check.FILE_NAME
    text = path.read_text()
    start = text.index(f'"{key}"') + len(key) + 2
    place = text.index("." if key in ("boxes", "cosines") else '"', start) + (key == "picture") * 40
    place += key == "names"
    flipped = {".": ","}.get(text[place], chr(ord(text[place]) ^ 1))
    path.write_text(text[:place] + flipped + text[place + 1 :])
    try:
        assert not self_check.compare(directory).passed
    except CheckpointMismatch as error:
        assert "doctor.py --write" in str(error)


def test_numbers_that_are_not_finite_do_not_pass():
    expected = np.zeros((1, 2))
    assert self_check.Comparison(expected, expected).passed
    assert not self_check.Comparison(np.array([[0.0, np.nan]]), expected).passed


def picture(side: int, kind: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


RECORD = {
    "format": 1, "picture": picture(8, "BMP"), "names": ["cat"],
    "boxes": [[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 8.0, 8.0]],
    "templates": "plain", "cosines": [[0.1], [0.2]], "scores": [[1.0], [1.0]],
    "parameters_sha256": "00",
}  # fmt: skip


@pytest.mark.property
def test_a_value_of_another_type_is_a_one_line_error(tmp_path):
    """A record that is accepted is refused too, as the directory has no model."""
    path, num_refused = tmp_path / self_check.FILE_NAME, 0
    for text in texts_with_another_value(RECORD):
        path.write_text(text)
        with pytest.raises(CheckpointMismatch) as error:
            self_check.compare(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
        num_refused += str(path) in str(error.value)
    assert num_refused > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode()}, "none of the formats"),
        ({"picture": picture(8, "ICO")}, "none of the formats"),
        ({"picture": picture(1025, "PNG")}, "an image of 1025 x 1025 pixels"),
        ({"names": ["cat", "dog"]}, r"numbers of another shape than \(2, 2\)"),
        ({"boxes": [[0, 0, 4, 4], [4, 4, 0, 0]]}, "boxes: row 1"),
    ],
)
def test_a_self_check_of_other_numbers_is_refused(tmp_path, change, message):
    (tmp_path / self_check.FILE_NAME).write_text(json.dumps(RECORD | change))
    with pytest.raises(CheckpointMismatch, match=rf"self_check\.json: .*{message}.*--write"):
        self_check.compare(tmp_path)
