import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from answers import answers
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_card
from regionclip_jax.artifacts.results import read_detections, read_results
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.assembly.sources import build_boxes_source
from regionclip_jax.assembly.streams import DetectionPass
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import DetectionRecord
from regionclip_jax.data.sources.skipped import TooManySkipped
from regionclip_jax.evaluation.counts import Counts, Coverage
from regionclip_jax.evaluation.datasets import open_dataset
from regionclip_jax.evaluation.evaluators import Detection, RegionRecognition
from regionclip_jax.evaluation.evaluators import evaluate as evaluate_batches
from regionclip_jax.extras import MissingExtra
from regionclip_jax.jobs import evaluate
from regionclip_jax.settings import (
    ConfigError,
    DetectionSettings,
    EvaluateSettings,
    NmsSettings,
)
from regionclip_jax.text.categories import COCO_BASE_48, COCO_NOVEL_17

SIDE = 64
GOLDEN = Path(__file__).parents[1] / "golden"


def score(section, choose=lambda batch: batch.classes, predict=None):
    """Score known answers, by default the correct ones, on the data of the settings."""
    source = build_boxes_source(section, "evaluation", keep_file=True)
    dataset = open_dataset(source, section.class_split, classes=section.classes)
    detection = Detection(
        dataset, max_detections=section.detection.max_detections, given_boxes=True
    )
    evaluators = [detection, RegionRecognition(dataset)]
    batches = DetectionPass(section, source)
    return evaluate_batches(predict or answers(choose), dataset, batches, evaluators)


@pytest.fixture
def evaluate_student(tmp_path):
    def run(config, section):
        path = tmp_path / "vocabulary.npz"
        return evaluate.evaluate_model(
            config.models["student"],
            section,
            "float32",
            vocabulary_path=path,
            detections_path=tmp_path / "detections.json",
        )

    return run


@pytest.fixture(scope="module")
def config(evaluation, model_directory) -> EvaluateSettings:
    return EvaluateSettings(
        job="evaluate",
        matmul_precision="default",
        models={"student": model_directory("nano_vit")},
        dtype="float32",
        evaluation=evaluation,
    )


def test_an_evaluation_writes_a_table_metrics_and_detections(
    config, boxes_directory, tmp_path, capsys
):
    metrics = evaluate.run(config, tmp_path)
    results = read_results(tmp_path / "results.json")
    groups = ("novel", "base", "all")
    names = [f"{metric}_{group}" for metric in ("AP50", "top1") for group in groups]
    assert list(metrics["student"]) == names == list(results["student"])
    assert all(0 <= value <= 100 for value in metrics["student"].values())
    assert set(results["details"]["per_category"]["student"]) == set(SHAPES)
    assert results["details"]["models"] == config.models
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*names, "student"])
    errors = results["details"]["errors"]["student"]
    assert errors["ap50"] == pytest.approx({g: metrics["student"][f"AP50_{g}"] for g in groups})
    assert f"errors of student: AP50 {errors['ap50']['all']:.1f}, lost to " in printed
    assert f"false negatives  {errors['lost']['all']['false negatives']:>7.1f}" in printed
    with Image.open(tmp_path / "errors.png") as chart:
        assert min(chart.size) > 400

    source = ArrayRecordSource(boxes_directory)
    predictions = read_detections(tmp_path / "detections_student.json")
    for record in (source[i] for i in range(len(source))):
        image_predictions = [d for d in predictions if d["image_id"] == record.image_id]
        # Three boxes with 16 classes are 48 detections, so the limit of 100 drops none.
        assert len(image_predictions) == len(record.boxes) * len(SHAPES)
        boxes = {tuple(d["bbox"]) for d in image_predictions}
        x1, y1, x2, y2 = record.boxes.T
        expected = np.stack([x1, y1, x2 - x1, y2 - y1], 1)
        assert boxes == {tuple(map(float, box)) for box in expected}


@pytest.fixture(scope="module")
def coco_like(tmp_path_factory, scene_record):
    """One image with a base box, a novel box and a box of neither group, and unsorted names."""
    neither = "unicorn"
    names = (neither, *COCO_NOVEL_17, *COCO_BASE_48)
    image = scene_record(0, False).image
    classes = np.array([0, names.index(COCO_BASE_48[3]), names.index(COCO_NOVEL_17[5])], np.int32)
    boxes = np.array([[0, 0, 20, 20], [10, 10, 50, 40], [5, 30, 30, 60]], np.float32)
    record = DetectionRecord("only", image, boxes, classes, np.zeros(3, bool), 7)
    directory = tmp_path_factory.mktemp("coco_like") / "set"
    write_array_record([record], directory, 8, {"category_names": list(names)})
    return directory


def test_a_split_drops_boxes_of_classes_it_does_not_name(config, coco_like):
    section = dataclasses.replace(config.evaluation, path=str(coco_like), class_split="coco_48_17")
    metrics, details, _ = score(section)
    assert metrics == pytest.approx(dict.fromkeys(metrics, 100.0))
    rated = {name for name, scores in details["per_category"].items() if scores["AP50"] is not None}
    assert rated == {COCO_BASE_48[3], COCO_NOVEL_17[5]} and len(details["per_category"]) == 65
    # Category ids number the classes of the source from 1.
    names = ("unicorn", *COCO_NOVEL_17, *COCO_BASE_48)
    assert {names[result["category_id"] - 1] for result in details["results"]} == rated
    boxes = sorted(result["bbox"] for result in details["results"])
    assert boxes == [[5, 30, 25, 30], [10, 10, 40, 30]]


def test_without_a_split_there_is_one_group_of_all_classes(config, coco_like):
    section = dataclasses.replace(config.evaluation, path=str(coco_like), class_split="none")
    metrics, details, _ = score(section)
    assert metrics == pytest.approx({"AP50_all": 100.0, "top1_all": 100.0})
    assert len(details["results"]) == 3 and "unicorn" in details["per_category"]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "votes",
            r"evaluation\.class_split: 'votes' is neither a file nor one of \['coco_48_17', 'lvis'",
        ),
        ("coco_48_17", r"evaluation\.class_split: 'coco_48_17' names \[.*\], which ArrayRecord"),
    ],
)
def test_a_split_that_does_not_fit_the_data_is_refused(evaluate_student, config, split, message):
    section = dataclasses.replace(config.evaluation, class_split=split)
    with pytest.raises(ConfigError, match=message):
        evaluate_student(config, section)


def test_boxes_without_category_names_are_refused(evaluate_student, config, scene_record, tmp_path):
    write_array_record([scene_record(0, True)], tmp_path / "set", 8, {})
    section = dataclasses.replace(config.evaluation, path=str(tmp_path / "set"))
    with pytest.raises(ConfigError, match=r"evaluation\.path: .* names no categories"):
        evaluate_student(config, section)


def test_a_missing_model_is_refused_before_a_file_is_written(config, changed, tmp_path):
    first = config.models["student"]
    config = changed(config, {"models": {"a": first, "b": "nowhere"}})
    with pytest.raises(CheckpointMismatch, match="nowhere: expected a model directory"):
        evaluate.run(config, tmp_path)
    config = changed(config, {"models": {"a": first}, "evaluation.regions": "localizer"})
    with pytest.raises(CheckpointMismatch, match="expected a localizer in localizer/"):
        evaluate.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def localizer_directory(tmp_path_factory, nano_localizer) -> str:
    """Model directory with a localizer and no CLIP weights."""
    card, variables = nano_localizer
    directory = tmp_path_factory.mktemp("models") / "localizer_only"
    save_localizer(directory, variables, card)
    return str(directory)


@pytest.mark.parametrize("regions", ["windows", "localizer"])
def test_detection_is_scored_by_ap_and_by_the_recall_of_its_regions(
    config, localizer_directory, tmp_path, regions, capsys
):
    section = dataclasses.replace(
        config.evaluation,
        regions=regions,
        localizer=localizer_directory if regions == "localizer" else "",
        detection=dataclasses.replace(
            config.evaluation.detection,
            objectness="sigmoid" if regions == "localizer" else "none",
            nms=NmsSettings(),
        ),
    )
    evaluate.run(dataclasses.replace(config, evaluation=section), tmp_path)
    results = read_results(tmp_path / "results.json")
    metrics = results["student"]
    ap = [f"AP50_{group}" for group in ("novel", "base", "all")]
    # The localizer gives 50 proposals, half-sided windows are 16: no more can be counted.
    most = 50 if regions == "localizer" else 16
    recall = [f"recall@{most}", f"AR@{most}"]
    assert list(metrics) == [*ap, "AP", "AP50", "AP75", "APs", "APm", "APl", *recall]
    assert 0 < metrics[f"recall@{most}"] <= 100 and metrics["AP50"] == metrics["AP50_all"]
    saw = results["details"]["saw"]["student"]
    assert "run test" in saw["weights"]
    if regions == "localizer":
        assert "rpn.pth" in saw["boxes"] and "proposals of" in capsys.readouterr().out
    else:
        assert saw["boxes"] == "windows"
    assert results["details"]["images_per_second"]["student"] > 0
    assert (tmp_path / "detections.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_detections(tmp_path / "detections_student.json")) > 20


def test_contradictory_settings_are_refused(config, evaluate_student):
    section = config.evaluation
    for change, message in (
        ({"detection": DetectionSettings()}, r"objectness: 'reference' with .*ground_truth"),
        ({"regions": "windows", "window_sides": ()}, r"window_sides: \(\)"),
        ({"regions": "guesses"}, "regions: 'guesses' is none of"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(section, **change)
    with pytest.raises(ConfigError, match="needs an LVIS annotation file"):
        evaluate_student(config, dataclasses.replace(section, class_split="lvis"))
    with pytest.raises(CheckpointMismatch, match="--localizer"):
        evaluate_student(config, dataclasses.replace(section, regions="localizer"))


def test_a_vocabulary_must_contain_all_classes_and_may_contain_more(
    config, evaluate_student, tmp_path
):
    rng = np.random.default_rng(0)
    encoder = {"architecture": None, "parameters_sha256": None}
    embeddings = rng.standard_normal((len(SHAPES) + 1, 12)).astype(np.float32)
    path = tmp_path / "given.npz"
    section = dataclasses.replace(config.evaluation, vocabulary=str(path))
    detector = evaluate._load(config.models["student"], section, "float32")
    for order, spell in ((range(len(SHAPES)), str), (reversed(range(len(SHAPES))), str.upper)):
        names = ["unicorn", *(SHAPES[i] for i in order)]
        rows = [len(SHAPES) if name == "unicorn" else SHAPES.index(name) for name in names]
        # Names are compared as the tokenizer reads them.
        Vocabulary(tuple(map(spell, names)), embeddings[rows], (), encoder).save(path)
        given = evaluate._vocabulary(section, SHAPES, detector, tmp_path / "unused.npz")
        assert given.names == SHAPES
        np.testing.assert_array_equal(given.embeddings, embeddings[: len(SHAPES)])
    Vocabulary(SHAPES[1:], embeddings[: len(SHAPES) - 1], (), encoder).save(path)
    with pytest.raises(ConfigError, match=rf"lacks 1 of {len(SHAPES)} classes: \['{SHAPES[0]}'\]"):
        evaluate_student(config, section)
    Vocabulary(SHAPES, embeddings[1:, :5], (), encoder).save(path)
    with pytest.raises(CheckpointMismatch, match="5-dimensional"):
        evaluate_student(config, section)


CATEGORIES = [{"id": 3, "name": "red_thing", "frequency": "r"},
              {"id": 9, "name": "common_thing", "frequency": "c"},
              {"id": 11, "name": "thing", "frequency": "f"}]  # fmt: skip


@pytest.fixture
def folder(tmp_path, scene_record):
    """Two images with boxes, in the COCO layout and in the LVIS layout."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    images, annotations = [], []
    for number in range(2):
        (tmp_path / "val2017" / f"{number}.png").write_bytes(scene_record(number, False).image)
        images.append({
            "id": number + 5, "file_name": f"{number}.png", "height": SIDE, "width": SIDE,
            "coco_url": f"http://images/val2017/{number}.png",
            "neg_category_ids": [11], "not_exhaustive_category_ids": [],
        })  # fmt: skip
        for k, category in enumerate((3, 9)):
            annotations.append({
                "id": 2 * number + k + 1, "image_id": number + 5, "category_id": category,
                "bbox": [4 + 20 * k, 6, 20, 30], "area": 600,
            })  # fmt: skip
    lvis = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "annotations" / "lvis_v1_val.json").write_text(json.dumps(lvis))
    plain = [{k: v for k, v in i.items() if "category" not in k} for i in images]
    names = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES]
    crowd = {"id": 50, "image_id": 5, "category_id": 11, "bbox": [0, 0, 40, 40], "iscrowd": 1}
    coco = {"images": plain, "annotations": [*annotations, crowd], "categories": names}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(coco))
    return tmp_path


def test_lvis_is_scored_by_the_rules_of_lvis(config, evaluate_student, folder):
    section = dataclasses.replace(
        config.evaluation,
        source="lvis_folder", path=str(folder), split="val", class_split="lvis",
        detection=dataclasses.replace(config.evaluation.detection, max_detections=300),
    )  # fmt: skip
    metrics, details, _ = score(section)
    assert metrics["AP"] == metrics["APr"] == metrics["APc"] == 100
    assert metrics["APf"] is None and metrics["top1_rare"] == 100
    assert {r["category_id"] for r in details["results"]} == {3, 9}
    evaluation = evaluate_student(config, section)
    assert evaluation.class_names[3] == "red thing" and not evaluation.all_annotated


def test_a_coco_file_is_scored_with_its_crowds(config, folder):
    section = dataclasses.replace(
        config.evaluation,
        source="coco_folder", path=str(folder), split="val2017", class_split="none",
    )  # fmt: skip
    metrics, details, _ = score(section)
    assert metrics == {"AP50_all": 100.0, "top1_all": 100.0}
    # The prediction ignores crowd boxes, and the metrics do not count them as missed.
    assert len(details["results"]) == 4 and details["per_category"]["thing"]["AP50"] is None


def change_file(folder, name, change):
    path = folder / "annotations" / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_counted_is_said(config, folder):
    """A class and an image without objects, a box without area, crowds, other classes."""

    def change(content):
        image = {**content["images"][0], "id": 9, "width": SIDE}
        content["images"].append(image)
        content["annotations"].append(
            {"id": 60, "image_id": 5, "category_id": 3, "bbox": [9, 9, 0, 7], "area": 0}
        )

    change_file(folder, "instances_val2017", change)
    section = dataclasses.replace(
        config.evaluation,
        source="coco_folder", path=str(folder), split="val2017", class_split="none",
    )  # fmt: skip
    metrics, details, counts = score(section)
    assert counts["AP"] == Counts(
        images=3,
        images_without_boxes=1,
        boxes=5,
        groups={"all": {"classes": 3, "classes_with_boxes": 2, "boxes": 5}},
        classes_without_boxes=["thing"],
        exceptions={"crowd_boxes_ignored": 1, "boxes_without_area_missed": 1},
    )
    # The source drops a box without area, so top-1 does not count it.
    assert counts["top1"].boxes == 4 and counts["top1"].images == 3
    # One of three boxes of a class is missed: recall 2/3 reaches 67 of COCO's 101 thresholds.
    assert metrics["AP50_all"] == pytest.approx((67 + 101) / 2 / 1.01)
    assert metrics["top1_all"] == 100

    def with_a_false_detection(batch):
        prediction = answers(lambda batch: batch.classes)(batch)
        found, row = prediction.detections, list(batch.image_ids).index(9)
        found.boxes[row, 0], found.scores[row, 0], found.classes[row, 0] = (0, 0, 5, 5), 0.99, 0
        mask = found.mask.copy()
        mask[row, 0] = True
        return prediction.replace(detections=found.replace(mask=mask))

    # It is on the image without objects, and counts there.
    lowered = score(section, predict=with_a_false_detection).metrics["AP50_all"]
    assert lowered < metrics["AP50_all"] - 10
    text = Coverage(counts, {"data": {"boxes_dropped_empty": 1, "boxes_clipped": 0}}).text()
    assert text.splitlines() == [
        "AP: 3 images (1 without boxes); all: 5 boxes, 2 of 3 classes; crowd boxes ignored 1, "
        "boxes without area missed 1",
        "top1: 3 images (1 without boxes); all: 4 boxes, 2 of 3 classes",
        "data: boxes dropped empty 1",
        "classes without boxes: 1 (thing). They have no number of their own, but compete with the "
        "others for every region; --config.evaluation.classes=with_boxes leaves them out",
    ]
    # Without the class no crowd of it and no competitor is left; all images still count.
    _, details, counts = score(dataclasses.replace(section, classes="with_boxes"))
    assert list(details["per_category"]) == ["red_thing", "common_thing"]
    assert counts["AP"].images == 3 and counts["AP"].exceptions == {"boxes_without_area_missed": 1}
    assert not counts["AP"].classes_without_boxes


def test_a_frequency_without_a_class_has_no_row(config, folder):
    change_file(folder, "lvis_v1_val", lambda content: content["categories"].pop())
    section = dataclasses.replace(
        config.evaluation, source="lvis_folder", path=str(folder), split="val", class_split="lvis"
    )
    metrics = score(section).metrics
    assert {"APr", "APc", "top1_rare", "top1_common"} < set(metrics)
    assert not {"APf", "top1_frequent"} & set(metrics)
    with pytest.raises(ConfigError, match=r"evaluation\.classes 'with_boxes'.*LVIS's metric needs"):
        score(dataclasses.replace(section, classes="with_boxes"))


def test_detections_are_saved_before_they_are_scored(config, folder, monkeypatch):
    section = dataclasses.replace(
        config.evaluation, source="lvis_folder", path=str(folder), split="val", class_split="lvis"
    )
    source = build_boxes_source(section, "evaluation", keep_file=True)
    dataset = open_dataset(source, section.class_split)
    saved = []
    detection = Detection(dataset, max_detections=300, given_boxes=True, save=saved.extend)
    # The package of the metric disappears after the start.
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtra):
        evaluate_batches(
            answers(lambda batch: batch.classes),
            dataset,
            DetectionPass(section, source),
            [detection],
        )
    assert len(saved) == 4


def test_the_evaluation_of_a_training_needs_its_packages_at_the_start(config, folder, monkeypatch):
    section = dataclasses.replace(
        config.evaluation, source="lvis_folder", path=str(folder), split="val", class_split="lvis"
    )
    evaluate.check(section)
    evaluate.check(dataclasses.replace(section, class_split="trained"))
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(
        MissingExtra, match=r'needs the extra .lvis.: .*pip install -e "\.\[lvis\]"'
    ):
        evaluate.check(section)


def test_masks_are_not_compared_if_the_annotations_have_none(config, folder, caplog):
    section = dataclasses.replace(
        config.evaluation,
        source="coco_folder", path=str(folder), split="val2017", class_split="none",
    )  # fmt: skip
    source = build_boxes_source(section, "evaluation", keep_file=True)
    dataset = open_dataset(source, section.class_split)
    detection = Detection(dataset, max_detections=100, given_boxes=True, with_masks=True)
    # Known before the first image, not after the last.
    assert "masks are not: " in caplog.text and "annotation 1 of image 5 has no" in caplog.text
    batches = DetectionPass(section, source)
    metrics, *_ = evaluate_batches(
        answers(lambda batch: batch.classes), dataset, batches, [detection]
    )
    assert metrics == {"AP50_all": 100.0}


def test_an_image_with_too_many_boxes_is_refused_before_the_first_image(config, folder):
    section = dataclasses.replace(
        config.evaluation,
        source="coco_folder", path=str(folder), split="val2017", class_split="none", max_boxes=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"max_boxes: .* image number 0 has 2 boxes, more than 1"):
        DetectionPass(section, build_boxes_source(section, "evaluation"))


@pytest.mark.parametrize("loss", ["missing", "broken"])
def test_skipped_images_are_reported_with_the_metrics_that_count_them(
    config, folder, tmp_path, loss, capsys
):
    section = dataclasses.replace(
        config.evaluation,
        source="coco_folder", path=str(folder), split="val2017", class_split="none",
    )  # fmt: skip
    image = folder / "val2017" / "1.png"
    image.unlink() if loss == "missing" else image.write_bytes(b"<html>404</html>")
    with pytest.raises((ConfigError, TooManySkipped), match=r"1\.png"):
        evaluate.run(dataclasses.replace(config, evaluation=section), tmp_path / "strict")
    section = dataclasses.replace(section, max_skipped_fraction=0.5)
    # Recall 0.5 at precision 1 reaches 51 of COCO's 101 recall thresholds.
    assert score(section).metrics["AP50_all"] == pytest.approx(100 * 51 / 101)
    evaluate.run(dataclasses.replace(config, evaluation=section), tmp_path / "lenient")
    saw = read_results(tmp_path / "lenient" / "results.json")["details"]["saw"]["student"]
    assert saw["images"].startswith("1 of 2, the others were skipped: AP counts their objects")
    printed = capsys.readouterr().out
    assert "images: 1 of 2" in printed
    assert "crowd boxes ignored 1, images without prediction missed 1" in printed
    counts = read_results(tmp_path / "lenient" / "results.json")["details"]["counts"]["student"]
    assert counts["AP"]["images"] == 2 and counts["top1"]["images"] == 1
    skipped = counts["skipped"]
    if loss == "missing":
        assert skipped["data"]["images_missing"] == 1 and "images missing 1" in printed
    else:
        assert skipped["skipped_records"] == 1 and "1.png" in skipped["reasons"][0]
        assert "records that could not be read: 1 (" in printed


def test_an_invalid_annotation_file_is_refused_before_the_first_image(
    config, evaluate_student, folder
):
    change_file(folder, "instances_val2017", lambda c: c["annotations"][0].update(category_id=77))
    section = dataclasses.replace(
        config.evaluation,
        source="coco_folder", path=str(folder), split="val2017", class_split="none",
        max_skipped_fraction=0.5,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"evaluation\.path: .* found 77, which is not listed"):
        evaluate_student(config, section)


def test_a_siglip_is_evaluated_with_its_vocabulary_and_by_sigmoids(
    config, evaluate_student, tmp_path
):
    published = tmp_path / "published"
    published.mkdir()
    configurations = json.loads((GOLDEN / "siglip_configurations.json").read_text())
    for name, content in configurations["huggingface"].items():
        (published / name).write_text(json.dumps(content))
    convert_checkpoint(
        shutil.copy(GOLDEN / "siglip_huggingface.safetensors", published / "model.safetensors"),
        tmp_path / "siglip",
        tokenizer=GOLDEN / "siglip2_tokenizer.json",
    )
    # As in the recipes: a temperature for a softmax.
    detection = dataclasses.replace(
        config.evaluation.detection, temperature=0.01, score_activation=None, score_bias=None
    )
    section = dataclasses.replace(config.evaluation, detection=detection)
    models = {"student": tmp_path / "siglip"}
    evaluation = evaluate_student(dataclasses.replace(config, models=models), section)
    own = load_card(tmp_path / "siglip").scores.detection
    stated = evaluation.scores["detection"]
    assert stated["score_activation"] == own.score_activation == "sigmoid"
    assert stated["temperature"] == own.temperature and stated["score_bias"] == own.score_bias < -2
    assert evaluation.results and evaluation.metrics["AP50_all"] >= 0
