"""The chart has a bar for each cost, and is drawn for any number of models and classes."""

import numpy as np

from answers import no_errors
from regionclip_jax.data.sources.annotation_files import as_annotation_file
from regionclip_jax.evaluation import error_chart
from regionclip_jax.evaluation.error_analysis import COSTS, OUTCOMES, find_errors
from regionclip_jax.evaluation.ground_truth import coco_ground_truth

BOX = [0, 0, 10, 10]


def errors_of(*results):
    """Return the errors of (category, score) on one cup."""
    content = {
        "images": [{"id": 1}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "owl"}],
    }
    return find_errors(
        coco_ground_truth(as_annotation_file("cup", content)),
        [{"image_id": 1, "category_id": c, "bbox": BOX, "score": score} for c, score in results],
        category_groups={"all": {1, 2}},
        max_detections=100,
        federated=False,
    )


def charts(monkeypatch, errors):
    """Return the charts that are drawn, by title."""
    drawn = {}

    def draw_charts(columns, *, title, subtitle):
        drawn.update({chart.title: chart for column in columns for chart in column})
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(error_chart, "draw_charts", draw_charts)
    error_chart.draw(errors)
    return drawn


def test_bars_have_the_costs_the_outcomes_and_the_ap50_of_classes(monkeypatch):
    models = {"teacher": errors_of((2, 0.9)), "student": errors_of((1, 0.9), (1, 0.8))}
    costs, sizes, worst = charts(monkeypatch, models).values()
    assert [group.label for group in costs.groups] == list(COSTS)
    lost = [[bar.parts[0][0] for bar in group.bars] for group in costs.groups]
    assert lost == [[each.lost["all"][cost] for each in models.values()] for cost in COSTS]
    assert costs.groups[0].bars[0].text == "100.0   1 detection, 1 object"
    small = sizes.groups[0]
    assert (small.label, small.note) == ("small", "1 object")
    shares = [dict(zip(OUTCOMES, bar.parts, strict=True)) for bar in small.bars]
    assert shares[0]["classification"][0] == 1 == shares[1]["detected"][0]
    assert small.bars[1].text == "student 100% detected"
    # The owl has no object, so it has no AP50.
    assert [group.label for group in worst.groups] == ["cup"]
    assert [bar.text for bar in worst.groups[0].bars] == [
        "0.0   most lost to classification", "100.0"
    ]  # fmt: skip


def test_models_without_objects_or_detections_are_drawn():
    for errors in (no_errors(), errors_of()):
        image = error_chart.draw({"model": errors})
        assert image.dtype == np.uint8 and (image != 255).any()
