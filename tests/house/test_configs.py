"""Every recipe that is shipped parses, and its step traces at its real sizes."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from regionclip_jax import config as config_module
from regionclip_jax.artifacts import model_checkpoint
from regionclip_jax.artifacts.detector_heads import HeadsConfig, init_heads
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.config import (
    ConfigError,
    PretrainConfig,
    RunSection,
    ScenesDetectionConfig,
    ScenesExperimentConfig,
    TrainClipConfig,
    TrainDetectorConfig,
    TrainLocalizerConfig,
    as_plain,
    parse,
)
from regionclip_jax.jobs import assembly
from regionclip_jax.main import _JOBS
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer, LocalizerConfig
from regionclip_jax.models.localizer_presets import LOCALIZER_PRESETS
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.steps.detector_step import FrozenDetectorParts, make_detector_step
from regionclip_jax.steps.localizer_step import make_localizer_step
from regionclip_jax.steps.predict_step import DetectorVariables, make_predict_step
from regionclip_jax.steps.pretrain_step import Frozen, make_pretrain_step
from regionclip_jax.steps.train_clip_step import make_train_clip_step
from regionclip_jax.structures import DetectionBatch, ImageTextBatch

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


def abstract_batch(size: int, height: int, width: int, length: int) -> ImageTextBatch:
    return ImageTextBatch(
        images=jax.ShapeDtypeStruct((size, height, width, 3), jnp.uint8),
        sizes=jax.ShapeDtypeStruct((size, 2), jnp.int32),
        tokens=jax.ShapeDtypeStruct((size, length), jnp.int32),
        mask=jax.ShapeDtypeStruct((size,), jnp.bool_),
    )


def abstract_detection_batch(config) -> DetectionBatch:
    size, (height, width) = config.run.batch_size, config.data.canvas_sizes[0]
    rows = config.data.max_boxes

    def array(shape, dtype):
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    masks = None
    if isinstance(config, TrainDetectorConfig) and config.detector.mask_size is not None:
        masks = array((rows, config.detector.mask_size, config.detector.mask_size), jnp.uint8)
    return DetectionBatch(
        images=array((height, width, 3), jnp.uint8),
        sizes=array((2,), jnp.int32),
        boxes=array((rows, 4), jnp.float32),
        classes=array((rows,), jnp.int32),
        box_mask=array((rows,), jnp.bool_),
        image_ids=array((), jnp.int32),
        scales=array((2,), jnp.float32),
        mask=array((), jnp.bool_),
        object_masks=masks,
    )


def detector_parts(config: TrainDetectorConfig, optimizer):
    """Step, variables and frozen parts; the localizer is the one its recipe means."""
    section, clip = config.detector, assembly.architecture(config.model)
    pretrained = section.image_tower == "pretrained"
    levels = "rn50_c4" if section.pre_nms_topk == 6000 else "rn50_fpn"
    localizer = LOCALIZER_PRESETS[levels]
    heads = HeadsConfig(clip.embed_dim, section.mask_size and clip.vision_width * 32)
    variables = abstract_variables(config.model)
    params = jax.eval_shape(lambda: init_heads(heads, jax.random.key(0)))
    variables = {**variables, "params": variables["params"] | params}
    frozen = FrozenDetectorParts(
        abstract_localizer(localizer),
        jax.ShapeDtypeStruct((48, clip.embed_dim), jnp.float32),
    )
    step = make_detector_step(
        assembly.build_model(config.model, frozen_norm=pretrained),
        Localizer(localizer),
        optimizer,
        assembly.detector_settings(section, config.run, clip, pretrained),
    )
    return step, variables, (frozen,)


def localizer_parts(config: TrainLocalizerConfig, optimizer):
    localizer = LOCALIZER_PRESETS[config.localizer.preset]
    frozen_norm = assembly.norm_is_frozen(config.localizer.norm, "localizer.norm")
    step = make_localizer_step(
        Localizer(localizer, frozen_norm=frozen_norm),
        optimizer,
        assembly.localizer_settings(config.anchors, config.run),
    )
    return step, abstract_localizer(localizer), ()


def fresh(section):
    """The section without its file: a shape does not depend on the weights."""
    return dataclasses.replace(section, init_from="")


def abstract_variables(section):
    return jax.eval_shape(lambda: assembly.initial_variables(fresh(section), 0))


def test_every_config_file_offers_its_default_recipe():
    for module in RECIPES.values():
        assert module["get_config"]().job in _JOBS


@pytest.mark.parametrize(("stem", "variant"), VARIANTS)
def test_every_variant_parses_strictly(stem, variant):
    config = recipe(stem, variant)
    assert type(config).__name__ == _JOBS[config.job][0]
    assert as_plain(config)["job"] == config.job


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
        optimizer = assembly.build_optimizer(config.optimizer, config.run.num_steps)
        # Nothing is allocated: RN50x4 with 96 canvases would not fit here.
        if isinstance(config, TrainDetectorConfig):
            step, variables, frozen = detector_parts(config, optimizer)
        elif isinstance(config, TrainLocalizerConfig):
            step, variables, frozen = localizer_parts(config, optimizer)
        elif isinstance(config, TrainClipConfig):
            model = assembly.build_model(config.model, frozen_norm=False)
            variables, frozen = abstract_variables(config.model), ()
            step = make_train_clip_step(model, optimizer)
        else:
            student = assembly.build_model(config.student, frozen_norm=True)
            teacher = assembly.build_model(config.teacher, frozen_norm=True)
            variables = abstract_variables(config.student)
            dim = teacher.config.embed_dim
            pool = jax.ShapeDtypeStruct((4764, dim), jnp.float32)
            frozen = (Frozen(abstract_variables(config.teacher), pool, pool),)
            settings = assembly.pretrain_settings(config.regions, config.run)
            step = make_pretrain_step(student, teacher, optimizer, settings)
        state = jax.eval_shape(
            lambda v, c=config, o=optimizer: assembly.build_state(c.optimizer, v, o), variables
        )
        if isinstance(config, TrainDetectorConfig | TrainLocalizerConfig):
            batch = abstract_detection_batch(config)
        else:
            height, width = config.data.canvas_sizes[0]
            batch = abstract_batch(config.run.batch_size, height, width, config.data.context_length)
        after, metrics = jax.eval_shape(step, state, *frozen, batch)
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
    localizer_config = LocalizerConfig(blocks=(3, 4, 6, 3), pyramid_channels=256)
    localizer = Localizer(localizer_config) if section.regions == "localizer" else None
    step = make_predict_step(
        CLIP(PRESETS[preset]),
        assembly.detect_settings(section),
        assembly.build_find_regions(section, localizer),
    )
    height, width = max(section.canvas_sizes)
    size, boxes = section.batch_size, (section.batch_size, section.max_boxes)

    def shape(*sides, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sides, dtype)

    batch = DetectionBatch(
        images=shape(size, height, width, 3, dtype=jnp.uint8),
        sizes=shape(size, 2, dtype=jnp.int32),
        boxes=shape(*boxes, 4),
        classes=shape(*boxes, dtype=jnp.int32),
        box_mask=shape(*boxes, dtype=jnp.bool_),
        image_ids=shape(size, dtype=jnp.int32),
        scales=shape(size, 2),
        mask=shape(size, dtype=jnp.bool_),
    )
    num_classes = 1203 if section.class_split == "lvis" else 65
    variables = DetectorVariables(
        model_checkpoint.abstract_variables(PRESETS[preset]),
        shape(num_classes, PRESETS[preset].embed_dim),
        localizer and abstract_localizer(localizer_config),
    )
    found = jax.eval_shape(step, variables, batch)
    assert found.detections.boxes.shape == (size, section.max_detections, 4)
    regions = section.num_proposals if localizer else section.max_boxes
    assert found.regions.boxes.shape == (size, regions, 4)
