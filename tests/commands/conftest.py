"""The main command in child processes, on images of a few pixels.

All tests share one small recipe: RN50 on a COCO folder, reduced in a recipe file like a user's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)
from regionclip_jax.models.presets import PRESETS

ROOT = Path(__file__).parents[2]

_PRETRAIN = """
import runpy

def get_config():
    config = runpy.run_path("configs/pretrain.py")["rn50_coco"]()
    for model in (config.student, config.teacher):
        model.preset, model.init_from = "scenes", {model!r}
    config.data.path, config.data.split = {coco!r}, "train"
    config.data.short_sides, config.data.max_long_side = (64,), 96
    config.data.canvas_sizes = ((96, 96),)
    config.data.num_threads = 1
    config.data.context_length = 16
    # One of 14 captions is blank, and one of the 13 other images is corrupt.
    config.data.max_skipped_fraction, config.data.min_skipped_records = 0.1, 100
    config.concepts.names_file, config.concepts.templates = {concepts!r}, "plain"
    config.regions.proposals.num_proposals, config.regions.num_regions = 12, 6
    config.regions.images_per_group, config.regions.regions_per_chunk = 2, 6
    config.optimizer.boundaries = (100,)
    config.optimizer.warmup_steps = 2
    config.run.num_steps, config.run.batch_size = 4, 4
    config.run.log_every, config.run.checkpoint_every = 1, 3
    return config
"""

_EVALUATE = """
import runpy

def get_config():
    config = runpy.run_path("configs/evaluate.py")["coco80_gt"]()
    config.evaluation.path, config.evaluation.split = {coco!r}, "val"
    config.evaluation.short_side, config.evaluation.max_long_side = 64, 96
    config.evaluation.canvas_sizes = ((64, 96), (96, 64), (96, 96))
    config.evaluation.max_boxes, config.evaluation.detection.regions_per_chunk = 4, 4
    config.evaluation.templates = "plain"
    # The evaluation keeps every box with every class.
    config.evaluation.detection.score_threshold = 0.0
    config.evaluation.detection.nms.threshold = 1.0
    config.evaluation.num_threads = 1
    return config
"""

# (height, width) of the images: landscape, portrait, square.
SIZES = [(60, 90), (90, 60), (70, 70)] * 4
CATEGORIES = {7: "cat", 3: "dog", 12: "sheep"}


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment with one CPU device and one compilation cache for all runs of the session."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        # Compilation takes most of the time of a run, so it optimises less.
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def command(environment):
    """``command(recipe, workdir, *flags)``: arguments of ``subprocess`` for the main command."""

    def make(recipe, workdir, *flags: str) -> dict:
        arguments = [f"--config={recipe}", f"--workdir={workdir}", *flags]
        return {
            "args": [sys.executable, "-m", "regionclip_jax.main", *arguments],
            "cwd": ROOT,
            "env": environment,
            "text": True,
        }

    return make


@pytest.fixture(scope="session")
def run_main(command):
    """``run_main(recipe, workdir, *flags)``: the completed process of the main command."""

    def run(recipe, workdir, *flags: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            **command(recipe, workdir, *flags), capture_output=True, timeout=300, check=False
        )

    return run


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory) -> Path:
    """Model directory of the smallest preset with random weights."""
    directory = tmp_path_factory.mktemp("weights") / "scenes"
    rng = np.random.default_rng(0)
    shapes = flatten(abstract_variables(PRESETS["scenes"]))
    # NumPy draws the values, as compiling the JAX initialisers takes many seconds.
    leaves = {path: initial_value(path, leaf.shape, rng) for path, leaf in shapes.items()}
    save_model(directory, unflatten(leaves), ModelCard(PRESETS["scenes"], {"run": "test"}))
    return directory


def initial_value(path: str, shape: tuple[int, ...], rng) -> np.ndarray:
    constants = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0, "logit_scale": 2.6}
    name = path.rsplit("/", 1)[-1]
    if name in constants:
        return np.full(shape, constants[name], np.float32)
    fan_in = float(np.prod(shape[:-1])) if name == "kernel" else 1000.0
    return (rng.standard_normal(shape) / fan_in**0.5).astype(np.float32)


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory) -> Path:
    """COCO folder of twelve images; ``train`` also has a corrupt image and a blank caption."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    for folder in ("annotations", "train", "val"):
        (root / folder).mkdir()
    images, captions, boxes = [], [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        name = f"{number:012d}.jpg"
        pixels = rng.integers(0, 256, (height // 10, width // 10, 3), np.uint8)
        image = Image.fromarray(pixels).resize((width, height))
        for split in ("train", "val"):
            image.save(root / split / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        captions.append({"id": number, "image_id": number, "caption": f"a cat, {number} dogs"})
        for k in range(1 + number % 3):
            x, y = (round(float(v), 2) for v in rng.uniform(0, 25, 2))
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": list(CATEGORIES)[k],
                    "bbox": [x, y, 31.5, 28.25],
                    "area": 31.5 * 28.25,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    instances = {"images": images, "annotations": boxes, "categories": categories}
    write_json(root, "instances_val", instances)
    write_json(root, "captions_empty", {"images": images, "annotations": []})
    (root / "empty").mkdir()

    broken = [
        {"id": 13, "file_name": "broken.jpg", "height": 60, "width": 90},
        {"id": 14, "file_name": "blank.jpg", "height": 60, "width": 90},
    ]
    (root / "train" / "broken.jpg").write_bytes((root / "train" / name).read_bytes()[:200])
    (root / "train" / "blank.jpg").write_bytes((root / "train" / name).read_bytes())
    captions += [
        {"id": 13, "image_id": 13, "caption": "never seen"},
        {"id": 14, "image_id": 14, "caption": "  "},
    ]
    write_json(root, "captions_train", {"images": images + broken, "annotations": captions})
    return root


def write_json(root: Path, name: str, content: dict) -> None:
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def pretrain_recipe(tmp_path_factory, coco_folder, model_directory) -> Path:
    """Recipe file of a user: the recipe of the paper, reduced."""
    folder = tmp_path_factory.mktemp("recipes")
    concepts = folder / "concepts.txt"
    concepts.write_text("cat\ndog\nsheep\ngrass\n")
    recipe = folder / "pretrain_small.py"
    recipe.write_text(
        _PRETRAIN.format(model=str(model_directory), coco=str(coco_folder), concepts=str(concepts))
    )
    return recipe


@pytest.fixture(scope="session")
def evaluate_recipe(tmp_path_factory, coco_folder) -> Path:
    recipe = tmp_path_factory.mktemp("recipes") / "evaluate_small.py"
    recipe.write_text(_EVALUATE.format(coco=str(coco_folder)))
    return recipe


@pytest.fixture(scope="session")
def error_message():
    """``error_message(done)``: the single error message of a failed command."""

    def check(done: subprocess.CompletedProcess) -> str:
        assert done.returncode not in (0, None), done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("regionclip_jax: ")]
        assert len(errors) == 1, done.stderr
        return done.stderr[done.stderr.index(errors[0]) :]

    return check
