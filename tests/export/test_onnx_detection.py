"""``detection.onnx``, run by onnxruntime, detects what the package detects."""

import dataclasses
import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import regionclip_jax
from regionclip_jax.artifacts.detector_heads import HeadsCard, HeadsConfig, init_heads, save_heads
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer, save_localizer
from regionclip_jax.artifacts.model_card import LocalizerCard, ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)
from regionclip_jax.commands.export import main as export
from regionclip_jax.export.onnx import COMPUTATION, to_onnx
from regionclip_jax.export.programs import detection_program
from regionclip_jax.model import RegionCLIP
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.models.vit_pyramid import PyramidConfig
from regionclip_jax.ops.nms import nms_by_group, nms_per_class

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
SIDE = 96
NAMES = ["cat", "remote control", "tree"]
SETTINGS = dict(score_threshold=0.0, max_detections=20, num_proposals=30)
OUTPUTS = ["boxes", "scores", "classes"]
# Scores are relative to the largest, boxes to the longest side of the image.
TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def libraries():
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")


def drawn(abstract: dict) -> dict:
    """Return random variables whose outputs differ, and stay finite, at any depth."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith(("scale", "var")):
            return np.ones(shape, np.float32)
        scale = 0.1 if len(shape) < 2 else (2 / math.prod(shape[:-1])) ** 0.5
        # Deltas of one, decoded by an exponential, would multiply every rounding.
        scale *= 0.01 if "deltas" in path or "bbox" in path else 1
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return unflatten({path: draw(path, leaf.shape) for path, leaf in flatten(abstract).items()})


@pytest.fixture(scope="module")
def directories(tmp_path_factory, nano_configs, nano_directory):
    """``directories(name)``: model directories with random numbers."""
    root = tmp_path_factory.mktemp("detection")

    def save(name: str, config, localizer: LocalizerConfig | None) -> Path:
        save_model(root / name, drawn(abstract_variables(config)), ModelCard(config, {}))
        if localizer is not None:
            card = LocalizerCard(localizer, {"file": "rpn.pth"})
            save_localizer(root / name, drawn(abstract_localizer(localizer)), card)
        return root / name

    def make(name: str) -> Path:
        if name == "nano_resnet":
            return nano_directory
        if name == "tiny_resnet":
            return save(name, PRESETS["tiny"], LOCALIZER_PRESETS["small"])
        vit = nano_configs["vit"]
        if name == "nano_vit":
            c4 = LocalizerConfig(blocks=(1, 1, 1), stem_width=4, bottleneck_width=4, features=8)
            return save(name, vit, c4)
        assert name == "pyramid_vit"
        vit = dataclasses.replace(vit, image=ViTConfig(16, layers=5, width=16, heads=2))
        directory = save(name, vit, None)
        heads = HeadsConfig(vit.embed_dim, None, PyramidConfig((1, 2, 3, 4), 16, channels=8))
        abstract = jax.eval_shape(lambda: init_heads(heads, jax.random.key(0)))
        save_heads(directory, drawn(abstract), HeadsCard(heads, {"classes": ["cat"]}))
        return directory

    return functools.cache(make)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = ((60, 90), (200, 130), (96, 96), (40, 333))
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def load(directory: Path) -> RegionCLIP:
    return regionclip_jax.load(directory, short_side=SIDE, max_long_side=SIDE)


def require_equal(outputs, found, image: np.ndarray) -> None:
    boxes, scores, classes = outputs
    real = scores > 0
    assert len(found) > 3 and real.sum() == len(found)
    np.testing.assert_array_equal(classes[real], found.classes)
    atol = TOLERANCE * found.scores.max()
    np.testing.assert_allclose(scores[real], found.scores, rtol=0, atol=atol)
    atol = TOLERANCE * max(image.shape)
    np.testing.assert_allclose(boxes[real], found.boxes, rtol=0, atol=atol)
    assert not any(one[~real].any() for one in outputs)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["nano_resnet", "tiny_resnet", "nano_vit", "pyramid_vit"])
def test_onnxruntime_detects_the_same(name, directories, images, run_onnx, canvas_inputs):
    model = load(directories(name))
    vocabulary = model.vocabulary(NAMES, templates="plain")
    program = detection_program(model, vocabulary, SIDE, **SETTINGS, **COMPUTATION)
    content = to_onnx(program.call, program.inputs, OUTPUTS)
    for image in images:
        outputs = run_onnx(content, *canvas_inputs(image, SIDE))
        require_equal(outputs, model.detect(image, vocabulary, **SETTINGS), image)


@pytest.mark.parity
@pytest.mark.parametrize(
    "changed",
    [
        {"proposals": {"voting_threshold": 0.4}},
        {"nms": {"method": "gaussian"}},
        {"nms": {"method": "linear"}},
        {"report_probabilities": True},
        {"embed_from": "crops", "objectness": "reference"},
    ],
)
def test_settings_of_the_directory_are_those_of_the_program(
    changed, directories, images, run_onnx, canvas_inputs
):
    model = load(directories("nano_resnet"))
    settings, proposals = model.scores.detection, model.scores.proposals
    replace = dataclasses.replace
    fields = {name: value for name, value in changed.items() if name not in ("nms", "proposals")}
    nms = replace(settings.nms, **changed.get("nms", {}))
    model.scores = replace(
        model.scores,
        detection=replace(settings, nms=nms, **fields),
        proposals=replace(proposals, **changed.get("proposals", {})),
    )
    vocabulary = model.vocabulary(NAMES, templates="plain")
    program = detection_program(model, vocabulary, SIDE, **SETTINGS, **COMPUTATION)
    content = to_onnx(program.call, program.inputs, OUTPUTS)
    outputs = run_onnx(content, *canvas_inputs(images[0], SIDE))
    require_equal(outputs, model.detect(images[0], vocabulary, **SETTINGS), images[0])


@pytest.fixture(scope="module")
def suppression():
    """Sessions of suppression by group and per class, of 60 boxes and 4 classes, and the groups."""
    onnxruntime = pytest.importorskip("onnxruntime")
    groups = np.arange(60, dtype=np.int32) % 3

    def by_group(boxes, scores, mask):
        return nms_by_group(boxes, scores, groups, mask, iou_threshold=0.5, max_outputs=25)

    def per_class(boxes, scores, mask):
        return nms_per_class(
            boxes, scores, mask, score_threshold=-1.0, iou_threshold=0.3, max_outputs=40
        )

    made = []
    for function, scores, outputs in ((by_group, (60,), 2), (per_class, (60, 4), 4)):
        shapes = {"boxes": (60, 4), "scores": scores, "mask": (60,)}
        inputs = {
            name: jax.ShapeDtypeStruct(shape, bool if name == "mask" else jnp.float32)
            for name, shape in shapes.items()
        }
        content = to_onnx(function, inputs, [f"output{index}" for index in range(outputs)])
        made.append((onnxruntime.InferenceSession(content), function, scores))
    return made


@pytest.mark.property
@given(seed=st.integers(0, 10**6))
def test_the_operator_suppresses_as_ops_nms(suppression, seed):
    """Compare rows of boxes on a grid, some empty or inverted, with ties of scores and of IoUs."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 14, (60, 2)), rng.integers(-1, 9, (60, 2))
    boxes = np.concatenate([corners, corners + sides], -1) / rng.choice([1, 3, 7])
    boxes, mask = boxes.astype(np.float32), rng.random(60) < 0.8
    for session, function, shape in suppression:
        scores = (rng.integers(-12, 12, shape) / 8).astype(np.float32)
        found = session.run(None, {"boxes": boxes, "scores": scores, "mask": mask})
        expected = function(*map(jnp.asarray, (boxes, scores, mask)))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.command
def test_rows_of_zeros_are_no_classes(
    directories, images, tmp_path, capsys, run_onnx, canvas_inputs
):
    model = load(directories("nano_resnet"))
    flags = ["--vocabulary", "input", "--num_names", 5, "--size", SIDE, "--num_boxes", 3]
    flags += ["--score", 0, "--max_boxes", 20, "--num_proposals", 30]
    arguments = [model.directory, "--format", "onnx", "--output", tmp_path / "onnx", *flags]
    assert export([*map(str, arguments)]) == 0, capsys.readouterr().err
    vocabulary = model.vocabulary(NAMES, templates="plain")
    rows = np.pad(vocabulary.embeddings, ((0, 2), (0, 0)))
    path = tmp_path / "onnx" / "detection.onnx"
    outputs = run_onnx(path, *canvas_inputs(images[0], SIDE), rows)
    require_equal(outputs, model.detect(images[0], vocabulary, **SETTINGS), images[0])
    about = json.loads((tmp_path / "onnx" / "model.json").read_text())
    described = about["programs"][-1]
    assert described["file"] == "detection.onnx"
    assert [one["name"] for one in described["inputs"]] == ["image", "size", "scale", "embeddings"]
    assert [one["name"] for one in described["outputs"]] == OUTPUTS
    assert (described["score_threshold"], described["max_detections"]) == (0, 20)
    assert {one["name"] for each in about["programs"] for one in each["inputs"]} == {
        *about["inputs"]
    }


@pytest.mark.command
def test_the_documented_lines_run_with_onnxruntime_alone(directories, images, tmp_path, capsys):
    Image.fromarray(images[0]).save(tmp_path / "photo.png")
    model, output = load(directories("nano_resnet")), tmp_path / "clip_rn50_onnx"
    flags = ["--names", ", ".join(NAMES), "--size", SIDE, "--num_boxes", 3, "--score", 0]
    arguments = [model.directory, "--format", "onnx", "--output", output, "--max_boxes", 20, *flags]
    assert export([*map(str, arguments)]) == 0, capsys.readouterr().err
    (code,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        if "InferenceSession" in code
    ]
    code = code.replace("photo.jpg", "photo.png").replace("score > 0.5", "score > 0")
    blocked = "import sys\nsys.modules['regionclip_jax'] = sys.modules['jax'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = model.detect(images[0], NAMES, score_threshold=0.0, max_detections=20)
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    assert [line.split(" [")[0] for line in lines] == list(found.names)


@pytest.mark.command
def test_flags_of_detection_need_a_localizer(nano_configs, nano_variables, tmp_path, capsys):
    save_model(tmp_path / "model", nano_variables("vit"), ModelCard(nano_configs["vit"], {}))
    flags = ["--format", "onnx", "--output", str(tmp_path / "onnx"), "--names", "cat"]
    assert export([str(tmp_path / "model"), *flags, "--score", "0.1"]) == 1
    assert "has no localizer" in capsys.readouterr().err
