"""`regionclip evaluate`, `model.detect` and `regionclip detect` find the same without flags."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regionclip_jax
from regionclip_jax import recipes
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.artifacts.results import read_detections
from regionclip_jax.commands import detect
from regionclip_jax.jobs import evaluate
from regionclip_jax.settings import (
    DetectionSettings,
    EvaluateSettings,
    ProposalSettings,
    ScoreSettings,
)

ROOT = Path(__file__).parents[2]
NAMES = ("cat", "dog", "sheep")


@pytest.mark.slow
def test_evaluate_detect_and_the_api_agree_without_flags(
    tmp_path, nano_variables, nano_configs, nano_localizer, monkeypatch
):
    """Scores differ by at most 1e-5: other batches and chunks."""
    directory, images = tmp_path / "model", tmp_path / "coco" / "val"
    scores = ScoreSettings(
        ProposalSettings(60, None, 0.8),
        DetectionSettings(temperature=0.05, objectness="sigmoid", max_detections=40),
    )
    card = ModelCard(nano_configs["resnet"], {}, scores=scores)
    save_model(directory, nano_variables("resnet"), card)
    save_localizer(directory, nano_localizer[1], nano_localizer[0])
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries, boxes = [], []
    for number in (1, 2, 3):
        pixels = rng.integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 90})
        box = {"bbox": [5, 5, 40, 40], "area": 1600, "iscrowd": 0}
        boxes.append({"id": number, "image_id": number, "category_id": number, **box})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    truth = {"images": entries, "annotations": boxes, "categories": categories}
    annotations = tmp_path / "coco" / "annotations" / "instances_val.json"
    annotations.parent.mkdir()
    annotations.write_text(json.dumps(truth))

    config = runpy.run_path(str(ROOT / "configs" / "evaluate.py"))["detector"]()
    config.evaluation.update(
        path=str(tmp_path / "coco"), split="val", short_side=64, max_long_side=128,
        canvas_sizes=((64, 96), (128, 128)), max_boxes=4, batch_size=8,
    )  # fmt: skip
    settings = recipes.resolve(EvaluateSettings, config)
    evaluate.evaluate_model(
        directory,
        settings.evaluation,
        "float32",
        vocabulary_path=tmp_path / "vocabulary.npz",
        detections_path=tmp_path / "evaluated.json",
    )
    model = regionclip_jax.load(directory, short_side=64, max_long_side=128)
    monkeypatch.setattr(detect, "load", lambda *_, **__: model)
    arguments = ["--checkpoint", str(directory), "--images", str(images)]
    arguments += ["--classes", ",".join(NAMES), "--output", str(tmp_path / "found")]
    assert detect.main(arguments) == 0
    commanded = json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"]
    evaluated = read_detections(tmp_path / "evaluated.json")
    for number in (1, 2, 3):
        found = model.detect(images / f"{number}.png", NAMES)
        assert len(found) == 40
        for others in (commanded, evaluated):
            others = [entry for entry in others if entry["image_id"] == number]
            others.sort(key=lambda entry: -entry["score"])
            np.testing.assert_allclose([e["score"] for e in others], found.scores, atol=1e-5)
            same = [
                e["category_id"] - 1 == row for e, row in zip(others, found.classes, strict=True)
            ]
            assert np.mean(same) > 0.95  # scores that are equal to rounding may change places
