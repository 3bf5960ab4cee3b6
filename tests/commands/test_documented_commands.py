"""One command of each kind, typed as the documents say, on a few small images in another folder.

``tests/repository/test_documented_commands.py`` parses all of them, and says which ones cannot run
in a test. The flags that are added here make images, models and runs small.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints import write_safetensors
from documented_commands import ROOT, find_commands
from parity.golden import make_state_dict
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer, save_localizer
from regionclip_jax.artifacts.model_card import LocalizerCard, ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)
from regionclip_jax.artifacts.results import read_results
from regionclip_jax.conversion.clip_keys import origin
from regionclip_jax.conversion.layouts import Layout
from regionclip_jax.evaluation.datasets import SPLITS
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS

pytestmark = [pytest.mark.command, pytest.mark.slow]

NAMES = [name for group in SPLITS["coco_48_17"].values() for name in group]


def small(key: str) -> list[str]:
    """Return flags for small images of a section of data or of an evaluation."""
    sides = "short_side=48" if key == "evaluation" else "short_sides=(48,)"
    values = [sides, "max_long_side=96", "canvas_sizes=((96,96),)", "num_threads=1"]
    return [f"--config.{key}.{value}" for value in values]


SHORT = [
    "--config.run.num_steps=1", "--config.run.batch_size=2", "--config.optimizer.warmup_steps=0",
]  # fmt: skip
PRETRAIN = [
    *SHORT, *small("data"), "--config.student.preset=tiny", "--config.teacher.preset=tiny",
    "--config.concepts.templates=plain", "--config.regions.proposals.num_proposals=8",
    "--config.regions.num_regions=4", "--config.regions.images_per_group=2",
]  # fmt: skip
EVALUATE = [
    *small("evaluation"),
    "--config.evaluation.templates=plain",
    "--config.evaluation.detection.regions_per_chunk=None",
]
DETECTOR = [
    *SHORT, *small("data"), *EVALUATE, "--config.model.preset=tiny",
    "--config.detector.templates=plain", "--config.detector.samples_per_image=8",
    "--config.detector.proposals.pre_nms_topk=50", "--config.detector.proposals.num_proposals=20",
    "--config.evaluation.proposals.pre_nms_topk=50",
    "--config.evaluation.proposals.num_proposals=20",
]  # fmt: skip
LOCALIZER = [
    *SHORT, *small("data"), *small("evaluation"), "--config.evaluation.proposals.pre_nms_topk=50",
    "--config.evaluation.proposals.num_proposals=20",
]  # fmt: skip
SIDES = ["--short_side", "48", "--max_long_side", "96"]


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_images(folder: Path, number: int) -> list[dict]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(number)
    for i in range(number):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(folder / f"{i}.jpg")
    return [{"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in range(number)]


def boxes(num_images: int, num_classes: int) -> list[dict]:
    """Return two boxes for every image; all classes occur among the first images' ones."""
    return [
        {"id": n, "image_id": n // 2, "category_id": n % num_classes + 1,
         "bbox": [5 + 3 * (n % 7), 8, 30, 25 + n % 9], "area": 750, "iscrowd": 0}
        for n in range(2 * num_images)
    ]  # fmt: skip


def coco(root: Path, splits: list[str]) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    captions = [
        {"id": 100 * i + n, "image_id": i, "caption": f"a dog near a cat and {n} people"}
        for i in range(40)
        for n in range(5)
    ]
    for split in splits:
        images = write_images(root / split, 40)
        content = {"images": images, "annotations": boxes(40, len(NAMES))}
        write_json(
            root / "annotations" / f"instances_{split}.json", content | {"categories": categories}
        )
        write_json(
            root / "annotations" / f"captions_{split}.json", content | {"annotations": captions}
        )


def openai_tensors(variables: dict) -> dict[str, np.ndarray]:
    """Return a model's tensors by OpenAI's names."""
    tensors: dict[str, np.ndarray] = {}
    packed: dict[str, dict[int, np.ndarray]] = {}
    for full, leaf in flatten(variables).items():
        collection, _, leaf_path = full.partition("/")
        value = np.asarray(leaf, np.float32)
        source = origin(leaf_path, value.ndim)
        if source.layout is Layout.CONVOLUTION:
            value = value.transpose(3, 2, 0, 1)
        elif source.layout is Layout.LINEAR:
            value = value.T
        if source.third is None:
            tensors[source.name] = value
        else:
            packed.setdefault(source.name, {})[source.third] = value
    return tensors | {
        name: np.concatenate([thirds[i] for i in range(3)]) for name, thirds in packed.items()
    }


def draw(shapes: dict) -> dict:
    """Draw variables with NumPy; compiling the initialisers takes longer."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        name = path.rsplit("/", 1)[-1]
        constants = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0, "logit_scale": 2.6}
        if name in constants:
            return np.full(leaf.shape, constants[name], np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 100.0
        return (rng.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    return unflatten({path: value(path, leaf) for path, leaf in shapes.items()})


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """Folder with what the documents expect of a reader."""
    root = tmp_path_factory.mktemp("reader")
    coco(root / "data" / "coco", ["train2017", "val2017"])
    coco(root / "data" / "few", ["train2017"])
    write_images(root / "photos", 2)
    images = write_images(root / "pictures", 4)
    own = [{"id": 1, "name": "cup"}, {"id": 2, "name": "spoon"}]
    for name in ("boxes.json", "test.json"):
        write_json(root / name, {"images": images, "annotations": boxes(4, 2), "categories": own})
    clip = draw(flatten(abstract_variables(PRESETS["tiny"])))
    write_safetensors(root / "RN50.pt", openai_tensors(clip))
    write_safetensors(root / "rpn_lvis_866.pth", make_state_dict("tiny_rpn_fpn"))
    regionclip = root / "checkpoints" / "regionclip_rn50"
    save_model(regionclip, clip, ModelCard(PRESETS["tiny"], {"file": "test"}))
    config = LOCALIZER_PRESETS["scenes"]
    localizer = draw(flatten(abstract_localizer(config)))
    save_localizer(regionclip, localizer, LocalizerCard(config, {"file": "test"}))
    return root


# In an order in which every command finds what the earlier ones wrote: the document, the words that
# identify the command, the flags that make it small, and a file that it writes.
RUN = [
    ("README.md", "scripts/convert_checkpoint.py", [], "checkpoints/clip_rn50/card.json"),
    ("README.md", "scripts/build_concepts.py", [], "data/concepts.txt"),
    ("docs/concepts.md", "scripts/extract_concept_features.py", [], "vocabulary.npz"),
    ("README.md", "configs/pretrain.py:rn50_coco", PRETRAIN, "workdir/coco/model/card.json"),
    ("README.md", "configs/evaluate.py:coco_gt_rn50", EVALUATE, "workdir/eval/results.json"),
    ("README.md", "scripts/detect.py", SIDES, "found/detections.json"),
    ("docs/prepare_data.md", "--path data/coco", ["--workers=1"],
     "data/coco_prepared/manifest.json"),
    ("docs/prepare_data.md", "--verify data/coco_prepared", [], None),
    ("docs/training_detectors.md", "train_localizer.py:small", LOCALIZER,
     "workdir/localizer/model/localizer/card.json"),
    ("docs/training_detectors.md", "boxes.json", DETECTOR, "workdir/mine/results.json"),
    ("docs/index.md", "--describe", [], None),
]  # fmt: skip


def test_a_command_of_each_kind_runs_as_typed(reader, environment, monkeypatch):
    commands = find_commands()
    python = [sys.executable]
    for document, words, flags, written in RUN:
        found = [c for c in commands if c.document == document and words in " ".join(c.words)]
        assert found, f"{document} has no command with {words}"
        command = found[0]
        assert command.words[0] == "python", command
        target = list(command.words[1:])
        if command.script:
            target[0] = str(ROOT / target[0])
        done = subprocess.run(
            [*python, *target, *flags],
            cwd=reader, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        line = shlex.join([*command.words, *flags])
        assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        assert written is None or (reader / written).exists(), f"{line}\n{done.stdout[-1500:]}"

    # Flags of the documents that are added to a training: the prepared data.
    (fragment,) = [c for c in commands if c.is_fragment and "mixture" not in " ".join(c.words)]
    (training,) = [c for c in commands if c.document == "README.md" and "rn50_coco" in str(c)]
    done = subprocess.run(
        [*python, *training.words[1:], *fragment.words, *PRETRAIN, "--workdir=workdir/prepared"],
        cwd=reader, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]

    # The Python of the documents, on the converted model.
    text = (ROOT / "docs" / "using_models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(reader)
    names = {"image": "photos/0.jpg", "boxes": np.array([[5, 5, 60, 50]], np.float32)}
    exec(code, names)
    assert names["regions"].shape == (1, 64) and names["text"].shape == (2, 64)

    results = read_results(reader / "workdir" / "mine" / "results.json")
    assert set(results["details"]["per_category"]["detector"]) == {"cup", "spoon"}
