"""Recipes of the repository and all their keys."""

import dataclasses
import runpy
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from regionclip_jax import recipes
from regionclip_jax.assembly.prediction import abstract_prediction
from regionclip_jax.assembly.training import EXAMPLES, Assumed
from regionclip_jax.jobs.registry import JOBS
from regionclip_jax.settings import (
    Count,
    DetectionSettings,
    DistillSettings,
    NmsSettings,
    ProposalSettings,
    ScoreSettings,
    TrainDetectorSettings,
    TrainingSettings,
    completed,
)
from regionclip_jax.sharding.mesh import make_mesh

ROOT = Path(__file__).parents[2]
RECIPES = {p.stem: runpy.run_path(str(p)) for p in sorted((ROOT / "configs").glob("*.py"))}
VARIANTS = [(stem, name) for stem, module in RECIPES.items() for name in module["RECIPES"]]


def recipe(stem: str, variant: str):
    config = RECIPES[stem]["get_config"](variant)
    return recipes.resolve(JOBS[config.job].settings, config)


def training_recipes(stem: str, variant: str):
    """Return the training settings of a recipe, or of the jobs of an experiment."""
    settings = recipe(stem, variant)
    if isinstance(settings, TrainingSettings):
        return [settings]
    return [value for value in vars(settings).values() if isinstance(value, TrainingSettings)]


def localizer_of(settings) -> str | None:
    """Return the name of the localizer preset for a training recipe, or None."""
    if isinstance(settings, DistillSettings):
        return "rn50_fpn" if settings.regions.boxes == "proposals" else None
    if not isinstance(settings, TrainDetectorSettings) or settings.detector.pyramid_blocks:
        return None
    return "rn50_c4" if settings.detector.proposals.pre_nms_topk == 6000 else "rn50_fpn"


def test_every_config_file_has_a_default_recipe():
    for module in RECIPES.values():
        assert module["get_config"]().job in JOBS


@pytest.mark.parametrize("stem", list(RECIPES))
def test_an_unknown_variant_is_refused_with_the_known_variants(stem):
    with pytest.raises(ValueError, match="'nope' is none of"):
        RECIPES[stem]["get_config"]("nope")


def keys_of(section: type, prefix: str = "") -> Iterator[tuple[str, typing.Any]]:
    """Yield every key of settings with its type."""
    for name, annotation in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(annotation):
            yield from keys_of(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


def other_texts(annotation, value) -> list[tuple[str, typing.Any]]:
    """Return texts of the command line with their values, different from ``value`` if possible."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
        return [("None", None), *other_texts(annotation, value)]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return [(choice, choice) for choice in typing.get_args(annotation)]
    if origin is dict:
        return []
    if origin is tuple:
        return [(repr(value), value)] if value else [("()", ())]
    samples = {
        bool: [("true", True), ("false", False)],
        str: [("a b,c=d", "a b,c=d"), ("", "")],
        int: [("7", 7)],
        Count: [("7", 7)],
        float: [("0.25", 0.25), ("1", 1.0)],
    }
    return samples[annotation]


def attribute(settings, key: str):
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize(("stem", "variant"), VARIANTS)
def test_every_key_of_every_recipe_can_be_set_on_the_command_line(stem, variant):
    """Assign every key, also None, without the checks across keys."""
    config = RECIPES[stem]["get_config"](variant)
    section = JOBS[config.job].settings
    usual, tried = recipes.resolve(section, config), 0
    for key, annotation in keys_of(section):
        for text, value in other_texts(annotation, attribute(usual, key)):
            changed = config.copy_and_resolve_references()
            recipes.assign(section, changed, key, text)
            assigned = attribute(changed, key)
            assert assigned == value and type(assigned) in (type(value), int), (key, text)
            tried += 1
    assert tried > 60


@pytest.mark.parametrize(("stem", "variant"), VARIANTS)
def test_a_recipe_is_unchanged_if_all_its_values_are_assigned_again(stem, variant):
    config = RECIPES[stem]["get_config"](variant)
    section = JOBS[config.job].settings
    usual = recipes.resolve(section, config)
    for key, annotation in keys_of(section):
        value = attribute(usual, key)
        if typing.get_origin(annotation) is not dict:
            recipes.assign(section, config, key, value if isinstance(value, str) else repr(value))
    assert recipes.resolve(section, config) == usual


TABLES = [name for name in RECIPES["evaluate"]["RECIPES"] if name.startswith(("coco_", "lvis_"))]


@pytest.mark.parametrize("variant", TABLES)
def test_the_recipes_of_the_papers_tables_leave_no_number_to_the_model(variant):
    evaluation = recipe("evaluate", variant).evaluation
    own = ScoreSettings(ProposalSettings(7, 7, 0.7), DetectionSettings(0.7, max_detections=7))
    detection = evaluation.detection
    assert completed(evaluation.proposals, own.proposals) == ProposalSettings(1000, 1000, 0.9)
    # Only a model with a sigmoid has another activation, and only a pyramid fuses scores.
    softmax = dataclasses.replace(
        detection, score_activation="softmax", score_bias=0.0, base_fusion=0.0, novel_fusion=0.0
    )
    assert completed(detection, own.detection) == softmax
    assert detection.temperature == 0.01 and detection.nms == NmsSettings()
    assert detection.objectness == ("reference" if "_rpn" in variant else "none")


def test_one_recipe_leaves_every_number_of_its_scores_to_the_model():
    evaluation = recipe("evaluate", "detector").evaluation
    own = ScoreSettings(ProposalSettings(7, 7, 0.7), DetectionSettings(0.7, "crops", "sigmoid"))
    assert completed(evaluation.proposals, own.proposals) == own.proposals
    detection = completed(evaluation.detection, own.detection)
    assert dataclasses.replace(detection, regions_per_chunk=None) == own.detection


def test_a_description_has_every_key_with_its_value_and_meaning():
    settings = recipe("pretrain", "rn50_coco")
    text = recipes.describe(settings)
    lines = text.splitlines()
    for key, _ in keys_of(type(settings)):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"config.{key} = "))
        assert lines[at + 1].startswith("    ") and len(lines[at + 1]) > 10, key
    assert "config.data.path = 'data/coco'  (default '')" in lines


@pytest.mark.parametrize(
    ("stem", "variant"),
    [pair for pair in VARIANTS if pair[0] != "evaluate"],
)
def test_the_step_of_every_training_recipe_traces_at_its_real_sizes(stem, variant):
    mesh = make_mesh(devices=jax.devices()[:1])
    for settings in training_recipes(stem, variant):
        # Abstract values, as RN50x4 with 96 canvases exceeds the memory of a small machine.
        training = JOBS[settings.job].build(settings, Assumed(localizer_of(settings)))
        state = training.abstract_state()
        after, metrics = jax.eval_shape(
            training.make_step(mesh), state, training.abstract_frozen(), training.abstract_batch()
        )
        # Examples have a row for each image.
        rows = {x.shape[0] for x in jax.tree.leaves(metrics.pop(EXAMPLES, ()))}
        assert rows <= {settings.run.batch_size}
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert all(metric.shape == () for metric in jax.tree.leaves(metrics))


@pytest.mark.parametrize("preset", ["RN50", "RN50x4"])
@pytest.mark.parametrize("variant", ["coco_gt", "coco_rpn", "lvis_rpn", "lvis_gt_crops"])
def test_evaluations_trace_at_their_real_sizes(variant, preset):
    """Trace the evaluation of published models with the localizer of the reference."""
    evaluation = recipe("evaluate", variant).evaluation
    localizer = "rn50_fpn" if evaluation.regions == "localizer" else None
    num_classes = 1203 if evaluation.class_split == "lvis" else 65
    step, variables, batch = abstract_prediction(
        evaluation, preset, "float32", localizer=localizer, num_classes=num_classes
    )
    size = evaluation.batch_size
    predictions = jax.eval_shape(step, variables, batch)
    assert predictions.detections.boxes.shape == (size, evaluation.detection.max_detections, 4)
    regions = evaluation.proposals.num_proposals if localizer else evaluation.max_boxes
    assert predictions.regions.boxes.shape == (size, regions, 4)
