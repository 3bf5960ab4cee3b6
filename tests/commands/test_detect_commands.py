"""Detection commands: JSON, PNG and NPZ files from images and class names."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.artifacts.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
SIZES = ["--short_side", "64", "--max_long_side", "128"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, nano_variables, nano_configs, nano_localizer) -> str:
    directory = tmp_path_factory.mktemp("models") / "nano"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    save_localizer(directory, variables, card)
    return str(directory)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Folder of three images and one corrupt file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 90)), ("b.jpg", (90, 60)), ("c.png", (1, 300))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    (folder / "notes.txt").write_text("no picture by its name")
    return folder


def command(name: str):
    return runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]


@pytest.mark.command
def test_a_folder_of_images_gives_json_and_annotated_images(checkpoint, photos, tmp_path):
    done = subprocess.run(
        [
            sys.executable, ROOT / "scripts" / "detect.py", "--checkpoint", checkpoint,
            "--images", photos, "--classes", "cat, remote control", "--output", tmp_path / "out",
            "--score", "0.1", "--max_boxes", "7", "--objectness", "sigmoid", *SIZES,
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false",
            "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one image is missing
    assert "devices: cpu, 1 x " in done.stderr.splitlines()[0]
    assert "skipped: " in done.stderr and "broken.jpg" in done.stderr
    assert "images/s" in done.stdout and "3 images" in done.stdout and "1 skipped" in done.stdout
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [Path(p["file"]).name for p in content["images"]] == ["a.png", "b.jpg", "c.png"]
    assert content["classes"] == ["cat", "remote control"] and len(content["skipped"]) == 1
    first = content["images"][0]
    assert 0 < len(first["detections"]) <= 7
    boxes = [tuple(d["box"]) for d in first["detections"]]
    assert len(set(boxes)) == len(boxes)  # each box has one name
    for detection in first["detections"]:
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 < x2 <= 90 and 0 <= y1 < y2 <= 60
        assert detection["class"] in content["classes"] and detection["score"] > 0.1
    annotated = Image.open(tmp_path / "out" / first["drawn"])
    assert annotated.size == (90, 60)


def test_a_single_file_without_an_image_is_an_error(checkpoint, photos, tmp_path, capsys):
    arguments = ["--checkpoint", checkpoint, "--classes", "cat", *SIZES]
    arguments += ["--output", str(tmp_path / "out"), "--images"]
    detect = command("detect")
    assert detect([*arguments, str(photos / "broken.jpg")]) == 1
    assert "broken.jpg" in capsys.readouterr().err
    assert detect([*arguments, str(photos / "*.gif")]) == 1
    assert "found none" in capsys.readouterr().err
    assert detect([*arguments, str(photos / "[ab].*")]) == 0


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat,cat", "more than once"),
        ("", "an empty name"),
        ("missing.txt", "missing.txt does not exist"),
        (None, "expected a vocabulary, found no file"),
        ("missing.npz", "expected a vocabulary, found no file"),
    ],
)
def test_invalid_names_are_refused_in_one_line(
    checkpoint, photos, tmp_path, capsys, classes, message
):
    arguments = ["--checkpoint", checkpoint, "--images", str(photos)]
    arguments += ["--output", str(tmp_path / "out")]
    arguments += [] if classes is None else ["--classes", classes]
    assert command("detect")(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_features_of_proposals_detections_and_given_boxes(checkpoint, photos, tmp_path, capsys):
    extract = command("extract_region_features")
    start = ["--checkpoint", checkpoint, *SIZES, "--images", str(photos), "--output"]

    assert extract([*start, str(tmp_path / "proposals"), "--num_proposals", "30"]) == 1
    assert "3 images, 1 skipped" in capsys.readouterr().out
    arrays = dict(np.load(tmp_path / "proposals" / "a.png.npz"))
    assert set(arrays) == {"boxes", "features", "logits"}
    assert 10 < len(arrays["boxes"]) <= 30 and arrays["features"].shape[1] == 32
    assert {len(x) for x in arrays.values()} == {len(arrays["boxes"])}
    assert np.linalg.norm(arrays["features"], axis=1).std() > 0  # not normalised

    assert extract([*start, str(tmp_path / "detections"), "--classes", "cat, dog, bird"]) == 1
    arrays = dict(np.load(tmp_path / "detections" / "b.jpg.npz"))
    count = len(arrays["boxes"])
    assert arrays["probabilities"].shape == (count, 3) and arrays["names"].tolist()[0] == "cat"
    for name in ("features", "classes", "scores"):
        assert len(arrays[name]) == count

    given = {"a.png": [[0, 0, 20, 20], [5, 5, 80, 50]], "b.jpg": [], "c.png": [[0, 0, 9, 1]]}
    (tmp_path / "boxes.json").write_text(json.dumps({**given, "broken.jpg": []}))
    arguments = [*start, str(tmp_path / "given"), "--boxes", str(tmp_path / "boxes.json")]
    assert extract(arguments) == 1  # of broken.jpg
    for name, boxes in given.items():
        arrays = np.load(tmp_path / "given" / f"{name}.npz")
        np.testing.assert_array_equal(arrays["boxes"], np.array(boxes).reshape(-1, 4))
        assert arrays["features"].shape == (len(boxes), 32)

    (tmp_path / "boxes.json").write_text(json.dumps(given))
    assert extract(arguments) == 1
    assert "no boxes for 1 images such as ['broken.jpg']" in capsys.readouterr().err


def test_a_complete_directory_detects_its_own_classes_without_more_flags(
    checkpoint, photos, tmp_path, capsys
):
    directory = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (tmp_path / "concepts.txt").write_text("cat\nremote control\n")
    path = str(tmp_path / "concepts.npz")
    arguments = ["--checkpoint", checkpoint, "--concepts", str(tmp_path / "concepts.txt")]
    assert command("extract_concept_features")([*arguments, "--output", path]) == 0
    assert "2 names, D = 32" in capsys.readouterr().out
    vocabulary = Vocabulary.load(path)
    assert vocabulary.names == ("cat", "remote control") and len(vocabulary.templates) == 81
    detect = ["--checkpoint", str(directory), "--images", str(photos / "a.png"), *SIZES]
    vocabulary.save(directory / "vocabulary.npz")
    detect += ["--output", str(tmp_path / "out"), "--score", "0"]
    assert command("detect")(detect) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["classes"] == ["cat", "remote control"] and content["objectness"] == "sigmoid"
    # Every score is a probability, though this localizer's logits exceed 100.
    scores = [d["score"] for image in content["images"] for d in image["detections"]]
    assert len(scores) == 30 and all(0 < score < 1 for score in scores)


def test_a_model_without_a_localizer_is_refused_before_the_first_image(
    checkpoint, photos, tmp_path, capsys
):
    directory = tmp_path / "model"
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("localizer"))
    arguments = ["--checkpoint", str(directory), "--images", str(photos), *SIZES]
    arguments += ["--output", str(tmp_path / "out")]
    for name, more in (("detect", ["--classes", "cat"]), ("extract_region_features", [])):
        assert command(name)([*arguments, *more]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "--localizer FILE_OR_DIR" in error
    assert not (tmp_path / "out").exists()
