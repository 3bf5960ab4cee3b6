"""The commands of the documents, typed as they say, on a few small images in another folder.

``tests/repository/test_documented_commands.py`` parses all of them, and says which ones cannot run
in a test. The flags that are added here make images, models and runs small.
"""

import base64
import io
import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints import to_caffe2, write_safetensors
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
from regionclip_jax.conversion import clip_keys, localizer_keys
from regionclip_jax.conversion.layouts import Layout, Origin
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
DISTILL = [*SHORT, *small("data"), "--config.regions.crops_per_chunk=4"]
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


def source_tensors(variables: dict, origin: Callable[[str, int], Origin]) -> dict[str, np.ndarray]:
    """Return a model's tensors by the names of the checkpoints that ``origin`` gives."""
    tensors: dict[str, np.ndarray] = {}
    packed: dict[str, dict[int, np.ndarray]] = {}
    for full, leaf in flatten(variables).items():
        value = np.asarray(leaf, np.float32)
        source = origin(full.partition("/")[2], value.ndim)
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


def conceptual_captions(tars: Path, tables: Path) -> None:
    """Write pairs as img2dataset writes them, and as RegionCLIP's tables of base64."""
    tars.mkdir()
    tables.mkdir()
    images = []
    with tarfile.open(tars / "00000.tar", "w") as tar:
        for i in range(6):
            file = io.BytesIO()
            Image.new("RGB", (80, 60), (40 * i, 90, 120)).save(file, "JPEG")
            images.append(file.getvalue())
            for name, content in (
                (f"{i:09}.jpg", images[-1]), (f"{i:09}.txt", f"a dog and {i} cats".encode()),
            ):  # fmt: skip
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    rows = [f"{i}\t{base64.b64encode(image).decode()}\n" for i, image in enumerate(images)]
    (tables / "images0.tsv").write_text("".join(rows))
    captions = [f"{i}\t{json.dumps({'captions': ['a cat']})}\n" for i in range(len(images))]
    (tables / "text0.tsv").write_text("".join(captions))


def siglip(folder: Path) -> None:
    """Write a small SigLIP 2 as a reader downloads it."""
    folder.mkdir()
    golden = ROOT / "tests" / "golden"
    shutil.copy(golden / "siglip_huggingface.safetensors", folder / "model.safetensors")
    shutil.copy(golden / "siglip2_tokenizer.json", folder / "tokenizer.json")
    configurations = json.loads((golden / "siglip_configurations.json").read_text())
    for name, content in configurations["huggingface"].items():
        write_json(folder / name, content)


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
    write_safetensors(root / "RN50.pt", source_tensors(clip, clip_keys.origin))
    # Only OpenAI's files have these, and so need no preset.
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    for file, preset, more in (("ViT-B-16.pt", "ViT-B/16", numbers),
                               ("b32_400m.pt", "ViT-B/32", {})):  # fmt: skip
        vit = draw(flatten(abstract_variables(PRESETS[preset])))
        tensors = source_tensors(vit, clip_keys.origin)
        write_safetensors(root / file, tensors | {k: np.array(v) for k, v in more.items()})
    siglip(root / "siglip2")
    write_safetensors(root / "rpn_lvis_866.pth", make_state_dict("tiny_rpn_fpn"))
    write_safetensors(root / "tuned.pth", make_state_dict("tiny_finetune"))
    rn50 = LOCALIZER_PRESETS["rn50_fpn"]
    imagenet = draw(flatten(abstract_localizer(rn50)))
    blobs = to_caffe2(source_tensors(imagenet, localizer_keys.origins(rn50)))
    (root / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    conceptual_captions(root / "data" / "cc3m_tars", root / "data" / "cc3m_tsv")
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
    ("docs/prepare_data.md", "--path data/cc3m_tars", ["--workers=1"],
     "data/cc3m_prepared/manifest.json"),
    ("docs/prepare_data.md", "--verify data/cc3m_prepared", [], None),
    # Its folder is the one of the tars; a reader has either.
    ("docs/prepare_data.md", "--path data/cc3m_tsv", ["--workers=1", "--output=data/cc3m_rows"],
     "data/cc3m_rows/manifest.json"),
    ("docs/training_detectors.md", "--trunk R-50.pkl", [],
     "checkpoints/rn50_imagenet/trunk/card.json"),
    ("docs/training_detectors.md", "train_localizer.py:coco_c4", LOCALIZER,
     "workdir/localizer/model/localizer/card.json"),
    ("docs/training_detectors.md", "train_detector.py:coco_ovd_rn50", DETECTOR,
     "workdir/detector/results.json"),
    ("docs/training_detectors.md", "boxes.json", DETECTOR, "workdir/mine/results.json"),
    ("docs/training_detectors.md", "train_localizer.py:small", LOCALIZER,
     "workdir/small_localizer/model/localizer/card.json"),
    ("docs/training_detectors.md", "train_detector.py:small", DETECTOR,
     "workdir/small_detector/results.json"),
    ("docs/index.md", "--describe", [], None),
    ("docs/distillation.md", "--source ViT-B-16.pt", [], "checkpoints/clip_vitb16/card.json"),
    ("docs/distillation.md", "vitb16_patches", DISTILL, "workdir/distill/model/card.json"),
    ("docs/distillation.md", "vitb16_proposals", DISTILL,
     "workdir/distill_proposals/model/card.json"),
    ("docs/using_models.md", "--source b32_400m.pt", [], "checkpoints/metaclip_b32/card.json"),
    ("docs/using_models.md", "--source siglip2", [], "checkpoints/siglip2_b16/card.json"),
]  # fmt: skip


def type_in(
    words: tuple[str, ...], flags: list[str], reader: Path, environment: dict
) -> subprocess.CompletedProcess:
    """Type a command in the reader's folder; it must succeed."""
    target = list(words[1:] if words[0] == "python" else words)
    if target[0].startswith("scripts/"):
        target[0] = str(ROOT / target[0])
    done = subprocess.run(
        [sys.executable, *target, *flags],
        cwd=reader, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    line = shlex.join([*words, *flags])
    assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done


def test_the_commands_run_as_typed(reader, environment, monkeypatch):
    commands = find_commands()
    for document, words, flags, written in RUN:
        found = [c for c in commands if c.document == document and words in " ".join(c.words)]
        assert found, f"{document} has no command with {words}"
        done = type_in(found[0].words, flags, reader, environment)
        assert written is None or (reader / written).exists(), f"{words}\n{done.stdout[-1500:]}"

    # Flags of the documents that are added to a training: the prepared data, and a mixture.
    (training,) = [c for c in commands if c.document == "README.md" and "rn50_coco" in str(c)]
    fragments = [c for c in commands if c.is_fragment]
    assert len(fragments) == 2
    for number, fragment in enumerate(fragments):
        flags = [*fragment.words, *PRETRAIN, f"--workdir=workdir/prepared{number}"]
        type_in(training.words, flags, reader, environment)

    # Commands with placeholders.
    (tuned,) = [c for c in commands if "--text-from" in c.words]
    files = iter(["tuned.pth", "rpn_lvis_866.pth"])
    named = {"DIR": "checkpoints/tuned"}
    words = tuple(next(files) if w == "FILE" else named.get(w, w) for w in tuned.words)
    type_in(words, [], reader, environment)
    assert (reader / "checkpoints/tuned/heads/card.json").exists()
    (doctor,) = [c for c in commands if c.script == "doctor"]
    type_in((*doctor.words[:-1], "checkpoints/tuned"), [], reader, environment)

    # The Python of the documents, on the converted model.
    text = (ROOT / "docs" / "using_models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(reader)
    names = {"image": "photos/0.jpg", "boxes": np.array([[5, 5, 60, 50]], np.float32)}
    exec(code, names)
    assert names["regions"].shape == (1, 64) and names["text"].shape == (2, 64)

    results = read_results(reader / "workdir" / "mine" / "results.json")
    assert set(results["details"]["per_category"]["detector"]) == {"cup", "spoon"}
