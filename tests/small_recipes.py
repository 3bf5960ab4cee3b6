"""Fixtures for jobs that take seconds: synthetic scenes of 64 pixels, networks of few channels."""

import collections
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from regionclip_jax import settings
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.scenes.dataset import SceneImages, draw_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing
from regionclip_jax.text.tokenizer import TokenizerSource

SIDE, LENGTH, NUM_RECORDS = 64, 24, 24

_TEXT = TextConfig(vocab_size=49408, context_length=77, width=16, heads=2, layers=1)
NANO = {
    "nano_vit": CLIPConfig(ViTConfig(16, 1, 16, 2), _TEXT, Preprocessing(64), embed_dim=12),
    "nano_resnet": CLIPConfig(
        ResNetConfig((1, 1, 1, 1), 8, 4), _TEXT, Preprocessing(64), embed_dim=20
    ),
    "nano_eva": CLIPConfig(EVAConfig(16, 1, 16, 2, 12), _TEXT, Preprocessing(48), embed_dim=10),
    "nano_siglip": CLIPConfig(
        SigLIPImageConfig(8, 1, 24, 3),
        SigLIPTextConfig(420, LENGTH, width=16, heads=2, layers=1, tokenizer="siglip2"),
        Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        embed_dim=24,
        logit_bias=True,
    ),
}
# It has the 420 ids of nano_siglip's text tower.
_VOCABULARY = Path(__file__).parent / "golden" / "siglip2_tokenizer.json"


@pytest.fixture(scope="session")
def nano_presets():
    """Register the presets of ``NANO`` for recipes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in NANO.items():
            patch.setitem(PRESETS, name, preset)
        yield


@pytest.fixture(scope="session")
def nano_weights():
    """``nano_weights(preset, seed)``: variables from NumPy; the initialisers compile slowly."""

    def draw(preset: str, seed: int) -> dict:
        rng = np.random.default_rng(seed)

        def value(path, shape):
            name = path.rsplit("/", 1)[-1]
            constants = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0, "logit_scale": 2.6}
            constants["logit_bias"] = -4.0
            if name in constants:
                return np.full(shape, constants[name], np.float32)
            fan_in = float(np.prod(shape[:-1])) if name == "kernel" else 1.0
            return (rng.standard_normal(shape) / fan_in**0.5).astype(np.float32)

        shapes = flatten(abstract_variables(NANO[preset]))
        return unflatten({path: value(path, leaf.shape) for path, leaf in shapes.items()})

    return draw


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, nano_presets, nano_weights):
    """``model_directory(preset, seed)``: a model directory with random weights."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def make(preset: str, seed: int = 0) -> str:
        directory = folder / f"{preset}-{seed}"
        if directory not in made:
            card = ModelCard(NANO[preset], {"run": "test"})
            tokenizer = TokenizerSource(NANO[preset].text.tokenizer, _VOCABULARY)
            save_model(directory, nano_weights(preset, seed), card, tokenizer)
            made[directory] = True
        return str(directory)

    return make


@pytest.fixture(scope="session")
def scene_record():
    """``scene_record(index, with_boxes)``: a record of the synthetic scenes."""
    scenes = SceneImages(0, 0, SIDE, (1, 3), (0.3, 0.5), overlap=0.2, typicality=0.8, clutter=1)
    return lambda index, with_boxes: draw_record(scenes, index, with_boxes)


@pytest.fixture(scope="session")
def pairs_directory(tmp_path_factory, scene_record):
    """ArrayRecord directory of 24 images with captions."""
    directory = tmp_path_factory.mktemp("data") / "pairs"
    write_array_record((scene_record(i, False) for i in range(NUM_RECORDS)), directory, 64, {})
    return directory


@pytest.fixture(scope="session")
def boxes_directory(tmp_path_factory, scene_record):
    """ArrayRecord directory of 20 images with boxes: the last batch of 8 has padded rows."""
    directory = tmp_path_factory.mktemp("data") / "boxes"
    description = {"category_names": list(SHAPES)}
    write_array_record((scene_record(i, True) for i in range(20)), directory, 64, description)
    return directory


@pytest.fixture(scope="session")
def data(pairs_directory) -> settings.CaptionDataSettings:
    return settings.CaptionDataSettings(
        source="array_record",
        path=str(pairs_directory),
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((SIDE, SIDE),),
        group_by_canvas=False,
        context_length=LENGTH,
        num_threads=1,
        max_skipped_fraction=0.1,
        min_skipped_records=1,
    )


@pytest.fixture(scope="session")
def evaluation(boxes_directory) -> settings.EvaluationSettings:
    return settings.EvaluationSettings(
        source="array_record",
        path=str(boxes_directory),
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((SIDE, SIDE),),
        batch_size=8,
        max_boxes=3,
        proposals=settings.ProposalSettings(num_proposals=50, pre_nms_topk=100),
        window_sides=(0.5,),
        detection=settings.DetectionSettings(
            temperature=0.1,
            objectness="none",
            score_threshold=0.0,
            nms=settings.NmsSettings(threshold=1.0),
        ),
        templates="plain",
        num_threads=1,
    )


@pytest.fixture(scope="session")
def optimizer() -> settings.OptimizerSettings:
    return settings.OptimizerSettings(
        learning_rate=0.05,
        boundaries=(100,),
        warmup_factor=1.0,
        warmup_steps=0,
        weight_decay=0.0,
        frozen_patterns=("^text/", "^logit_scale"),
    )


@pytest.fixture(scope="session")
def run_section() -> settings.RunSettings:
    return settings.RunSettings(
        num_steps=2, batch_size=8, log_every=1, checkpoint_every=1, checkpoints_to_keep=2
    )


@pytest.fixture(scope="session")
def regions() -> settings.PretrainObjective:
    return settings.PretrainObjective(
        proposals=settings.ProposalSettings(num_proposals=6, pre_nms_topk=50, nms_threshold=0.7),
        num_regions=3,
        temperature=0.1,
        teacher_temperature=0.1,
        images_per_group=4,
        regions_per_softmax=2,
        regions_per_chunk=None,
    )


@pytest.fixture(scope="session")
def model_section():
    """``model_section(preset, init_from)``: settings of a trained model in float32."""
    return lambda preset, init_from="": settings.TrainedModelSettings(
        preset, str(init_from), "float32"
    )


@pytest.fixture(scope="session")
def changed():
    """``changed(config, {"run.seed": 3})``: a copy of the config with these values."""

    def change(config, values: dict):
        # The checks of a section see all its keys, so they change together.
        sections = collections.defaultdict(dict)
        for key, value in values.items():
            head, _, rest = key.partition(".")
            sections[head][rest] = value
        changes = {
            head: inner[""] if "" in inner else change(getattr(config, head), inner)
            for head, inner in sections.items()
        }
        return dataclasses.replace(config, **changes)

    return change
