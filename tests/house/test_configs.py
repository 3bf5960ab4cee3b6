"""Every recipe that is shipped parses, and its step traces at its real sizes."""

import operator
import runpy
from pathlib import Path

import jax
import ml_collections
import pytest

from regionclip_jax import config as config_module
from regionclip_jax.config import (
    ConfigError,
    PretrainConfig,
    RunSection,
    ScenesDetectionConfig,
    ScenesExperimentConfig,
    TrainDetectorConfig,
    as_plain,
    parse,
)
from regionclip_jax.jobs import abstract_steps
from regionclip_jax.main import _JOBS

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {path.stem: runpy.run_path(str(path)) for path in sorted(CONFIGS.glob("*.py"))}
COUNT = "a whole number of at least 1"
VARIANTS = [(stem, name) for stem, module in RECIPES.items() for name in module["RECIPES"]]


def recipe(stem: str, variant: str):
    config = RECIPES[stem]["get_config"](variant)
    class_name, _ = _JOBS[config.job]
    return parse(getattr(config_module, class_name), config)


def training_recipes(stem: str, variant: str):
    """The training configs in a recipe: itself, or those of the embedded experiment."""
    config = recipe(stem, variant)
    if isinstance(config, ScenesExperimentConfig):
        return [config.train_clip, config.pretrain]
    if isinstance(config, ScenesDetectionConfig):
        return [config.train_clip, config.train_localizer, config.pretrain, config.train_detector]
    return [config]


def localizer_of(config) -> str | None:
    """The one that a detector's recipe means."""
    if not isinstance(config, TrainDetectorConfig):
        return None
    return "rn50_c4" if config.detector.pre_nms_topk == 6000 else "rn50_fpn"


def test_every_config_file_offers_its_default_recipe():
    for module in RECIPES.values():
        assert module["get_config"]().job in _JOBS


@pytest.mark.parametrize(("stem", "variant"), VARIANTS)
def test_every_variant_parses_strictly(stem, variant):
    config = recipe(stem, variant)
    assert type(config).__name__ == _JOBS[config.job][0]
    assert as_plain(config)["job"] == config.job


def dtype_keys(config, where: str = "") -> list[str]:
    """Paths of all keys of a recipe that choose the type of a computation."""
    keys = []
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            keys += dtype_keys(value, f"{where}{name}.")
        elif name == "dtype":
            keys.append(f"{where}{name}")
    return keys


@pytest.mark.parametrize(("stem", "variant"), VARIANTS)
def test_every_dtype_is_auto_and_takes_the_types_of_the_computation(stem, variant):
    config = RECIPES[stem]["get_config"](variant)
    section = getattr(config_module, _JOBS[config.job][0])
    keys = dtype_keys(config)
    assert keys and {operator.attrgetter(key)(config) for key in keys} == {"auto"}
    for key in keys:
        for value in ("auto", "float32", "bfloat16"):
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict({key: value})
            parse(section, changed)
        changed.update_from_flattened_dict({key: "float16"})
        message = rf"config\.{key}: 'float16' is none of \['auto', 'bfloat16', 'float32'\]"
        with pytest.raises(ConfigError, match=message):
            parse(section, changed)


@pytest.mark.parametrize("stem", list(RECIPES))
def test_a_variant_that_does_not_exist_is_refused_with_those_that_do(stem):
    with pytest.raises(ValueError, match="'nope' is none of"):
        RECIPES[stem]["get_config"]("nope")


@pytest.mark.parametrize(
    ("stem", "variant"),
    [pair for pair in VARIANTS if pair[0] != "evaluate"],
)
def test_the_step_of_every_training_recipe_traces_at_its_real_sizes(stem, variant):
    for config in training_recipes(stem, variant):
        # Nothing is allocated: RN50x4 with 96 canvases would not fit here.
        step, state, frozen, batch = abstract_steps.training_step(
            config, localizer=localizer_of(config)
        )
        after, metrics = jax.eval_shape(step, state, frozen, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert all(metric.shape == () for metric in jax.tree.leaves(metrics))


def run_section(**changes) -> dict:
    known = dict(
        num_steps=1,
        batch_size=1,
        fsdp=1,
        seed=0,
        log_every=1,
        checkpoint_every=1,
        checkpoints_to_keep=1,
    )
    return known | changes


def test_an_unknown_key_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"config\.batchsize: .* did you mean 'batch_size'"):
        parse(RunSection, run_section(batchsize=2))


def test_an_unknown_key_deep_in_a_recipe_is_named_with_its_path():
    config = RECIPES["pretrain"]["get_config"]("rn50_coco")
    with config.unlocked():
        config.regions.num_region = 3
    with pytest.raises(ConfigError, match=r"config\.regions\.num_region: .*'num_regions'"):
        parse(PretrainConfig, config)


def test_a_teacher_keeps_nothing_so_it_is_not_asked_what():
    config = RECIPES["pretrain"]["get_config"]("rn50_coco")
    with config.unlocked():
        config.teacher.kept_activations = "all"
    with pytest.raises(ConfigError, match=r"config\.teacher\.kept_activations: no such key"):
        parse(PretrainConfig, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": "10"}, rf"config\.num_steps: expected {COUNT}, found '10'"),
        ({"num_steps": 1.5}, rf"config\.num_steps: expected {COUNT}, found 1\.5"),
        ({"num_steps": True}, rf"config\.num_steps: expected {COUNT}, found True"),
        ({"log_every": 0}, rf"config\.log_every: expected {COUNT}, found 0"),
        ({"seed": None}, r"config\.seed: expected int, found None"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(RunSection, run_section(**changes))


def test_a_missing_key_is_named():
    config = run_section()
    del config["seed"]
    with pytest.raises(ConfigError, match=r"missing \['seed'\]"):
        parse(RunSection, config)


def test_a_section_that_is_a_value_is_refused():
    config = RECIPES["pretrain"]["get_config"]("rn50_coco").to_dict()
    with pytest.raises(ConfigError, match=r"config\.run: expected a section"):
        parse(PretrainConfig, config | {"run": 3})


def test_canvases_are_pairs():
    config = RECIPES["pretrain"]["get_config"]("rn50_coco").to_dict()
    config["data"]["canvas_sizes"] = ((800,),)
    with pytest.raises(ConfigError, match=r"config\.data\.canvas_sizes: expected 2 values"):
        parse(PretrainConfig, config)


def test_the_parts_of_a_mixture_are_sections_of_their_own():
    config = RECIPES["pretrain"]["get_config"]("rn50_coco").to_dict()
    part = dict(source="coco_folder", path="data/coco", split="train2017", weight=1)
    config["data"]["mixture"] = (part, part | {"weight": 2.5})
    parsed = parse(PretrainConfig, ml_collections.ConfigDict(config)).data.mixture
    assert [type(p) for p in parsed] == [config_module.MixturePart] * 2
    assert [p.weight for p in parsed] == [1.0, 2.5]
    config["data"]["mixture"] = (part | {"wieght": 1},)
    with pytest.raises(ConfigError, match=r"data\.mixture\.wieght: .*did you mean 'weight'"):
        parse(PretrainConfig, config)


def test_lists_from_the_wire_become_tuples_and_whole_numbers_floats():
    config = RECIPES["pretrain"]["get_config"]("rn50_coco").to_dict()
    config["data"]["canvas_sizes"] = [[800, 1344]]
    config["optimizer"]["learning_rate"] = 1
    parsed = parse(PretrainConfig, ml_collections.ConfigDict(config))
    assert parsed.data.canvas_sizes == ((800, 1344),)
    assert parsed.optimizer.learning_rate == 1.0


@pytest.mark.parametrize("preset", ["RN50", "RN50x4"])
@pytest.mark.parametrize("variant", ["coco_gt", "coco_rpn", "lvis_rpn", "lvis_gt_crops"])
def test_evaluations_trace_at_their_real_sizes(variant, preset):
    """The published models with the reference's localizer."""
    section = recipe("evaluate", variant).evaluation
    localizer = "rn50_fpn" if section.regions == "localizer" else None
    num_classes = 1203 if section.class_split == "lvis" else 65
    step, variables, batch = abstract_steps.prediction_step(
        section, preset, "float32", localizer=localizer, num_classes=num_classes
    )
    size = section.batch_size
    found = jax.eval_shape(step, variables, batch)
    assert found.detections.boxes.shape == (size, section.max_detections, 4)
    regions = section.num_proposals if localizer else section.max_boxes
    assert found.regions.boxes.shape == (size, regions, 4)
