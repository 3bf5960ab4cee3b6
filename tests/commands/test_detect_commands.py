"""Detection commands: JSON, PNG and NPZ files from images and class names."""

import contextlib
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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import regionclip_jax
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.commands import detect
from regionclip_jax.commands.embed_regions import read_boxes

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
            "--score", "0.1", "--max_boxes", "7", "--best_names", "--objectness", "sigmoid", *SIZES,
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
    dataset = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file_name"] for image in dataset["images"]] == ["a.png", "b.jpg", "c.png"]
    assert [c["name"] for c in dataset["categories"]] == ["cat", "remote control"]
    assert dataset["info"]["complete"] and len(dataset["info"]["skipped"]) == 1
    assert dataset["info"]["folder"] == str(photos)
    lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 3 and first["file"] == str(photos / "a.png")
    assert 0 < len(first["detections"]) <= 7
    boxes = [tuple(d["box"]) for d in first["detections"]]
    assert len(set(boxes)) == len(boxes)  # each box has one name
    for detection in first["detections"]:
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 < x2 <= 90 and 0 <= y1 < y2 <= 60
        assert detection["class"] in ("cat", "remote control") and detection["score"] > 0.1
    annotated = Image.open(tmp_path / "out" / first["drawn"])
    assert annotated.width == 4 * 90 and annotated.height > 4 * 60  # enlarged, with a legend


def test_the_dataset_is_one_of_coco_and_has_the_detections_of_the_api(
    checkpoint, photos, tmp_path, capsys, monkeypatch
):
    """No flag of scores: the directory's settings, as ``model.detect`` has them."""
    (photos / "deep" / "er").mkdir(parents=True)
    shutil.copy(photos / "a.png", photos / "deep" / "er" / "a.png")
    for name in ("b.jpg", "c.png"):  # one canvas, so one program
        (photos / name).unlink()
    out = tmp_path / "out"
    model = regionclip_jax.load(checkpoint, short_side=64, max_long_side=128, batch_size=2)
    monkeypatch.setattr(detect, "load", lambda *_, batch_size, **__: model)
    arguments = ["--checkpoint", checkpoint, "--images", str(photos), "--classes", "cat, dog"]
    arguments += ["--output", str(out), *SIZES]
    assert detect.main([*arguments, "--batch_size", "2"]) == 1
    with contextlib.redirect_stdout(None):
        dataset = COCO(str(out / "detections.json"))
    assert len(set(dataset.anns)) == len(dataset.dataset["annotations"]) and 0 not in dataset.anns
    names = [image["file_name"] for image in dataset.dataset["images"]]
    assert names == ["a.png", "deep/er/a.png"]
    folder = Path(dataset.dataset["info"]["folder"])
    for image in dataset.dataset["images"]:
        with Image.open(folder / image["file_name"]) as opened:
            assert (image["width"], image["height"]) == opened.size
        found = model.detect(folder / image["file_name"], ["cat", "dog"])
        entries = dataset.imgToAnns[image["id"]]
        assert len(entries) == len(found) > 0
        assert dataset.dataset["info"]["score_above"] == model.scores.detection.score_threshold
        corners = np.array([entry["bbox"] for entry in entries])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, found.boxes, atol=0.02)
        np.testing.assert_allclose([e["score"] for e in entries], found.scores, atol=2e-5)
        assert all(entry["area"] == round(np.prod(entry["bbox"][2:]), 2) for entry in entries)
        categories = [dataset.cats[entry["category_id"]]["name"] for entry in entries]
        assert tuple(categories) == found.names
    results = [
        {k: e[k] for k in ("image_id", "category_id", "bbox", "score")}
        for e in dataset.anns.values()
    ]
    with contextlib.redirect_stdout(None):
        judged = COCOeval(dataset, dataset.loadRes(results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    assert judged.stats[1] > 0.9  # the detections against themselves


def test_a_single_file_without_an_image_is_an_error(checkpoint, photos, tmp_path, capsys):
    arguments = ["--checkpoint", checkpoint, "--classes", "cat", *SIZES]
    arguments += ["--output", str(tmp_path / "out"), "--images"]
    run = command("detect")
    assert run([*arguments, str(photos / "broken.jpg")]) == 1
    assert "broken.jpg" in capsys.readouterr().err
    assert run([*arguments, str(photos / "*.gif")]) == 1
    assert "found none" in capsys.readouterr().err
    assert run([*arguments, str(photos / "[ab].*")]) == 0


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

    wrong = {**given, "broken.jpg": [], "b.jpg": [[0.1, 0.1, 0.5, 0.5]]}
    (tmp_path / "boxes.json").write_text(json.dumps(wrong))
    assert extract(arguments) == 1
    assert "the entry 'b.jpg': boxes: all coordinates" in capsys.readouterr().err

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
    arguments = ["--checkpoint", str(directory), "--images", str(photos / "a.png"), *SIZES]
    vocabulary.save(directory / "vocabulary.npz")
    arguments += ["--output", str(tmp_path / "out"), "--score", "0"]
    assert command("detect")(arguments) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["cat", "remote control"]
    assert content["info"]["objectness"] == "sigmoid"
    # Every score is a probability, though this localizer's logits exceed 100.
    scores = [annotation["score"] for annotation in content["annotations"]]
    assert len(scores) > 30 and all(0 < score < 1 for score in scores)


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


BOX = [0, 0, 9, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"x.jpg": [BOX]}, "the entry 'x.jpg' is the one of two images, a/x.jpg and b/x.jpg"),
        ({"a/x.jpg": [BOX]}, r"no boxes for 1 images such as \['b/x.jpg'\]"),
        ({"a/x.jpg": [BOX], "x.jpg": [[9, 9, 0, 0]]}, "the entry 'x.jpg': boxes: row 0"),
        ({"a/x.jpg": {"box": BOX}, "x.jpg": []}, "the entry 'a/x.jpg': "),
        ([BOX], "expected an entry for each image, found list"),
        ('{"x.jpg": [], "x.jpg": []}', "the key 'x.jpg' occurs more than once"),
        ("{", "boxes.json: expected JSON"),
        ("[" * 10**5, "boxes.json: expected JSON .maximum recursion depth"),
    ],
)
def test_boxes_that_do_not_name_each_image_once_are_refused(tmp_path, text, message):
    file = tmp_path / "boxes.json"
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=message):
        read_boxes(str(file), [Path("a/x.jpg"), Path("b/x.jpg")])
    good = {"a/x.jpg": [BOX], "x.jpg": []}
    file.write_text(json.dumps(good))
    found = read_boxes(str(file), [Path("a/x.jpg"), Path("b/x.jpg")])
    assert [boxes.tolist() for boxes in found] == [[BOX], []]
