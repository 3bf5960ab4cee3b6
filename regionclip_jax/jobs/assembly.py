"""The only translator: sections of a recipe into sources, models, optimizers, settings."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from absl import logging

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.config import (
    ConfigError,
    DataSection,
    EvaluationSection,
    ModelSection,
    OptimizerSection,
    RegionsSection,
)
from regionclip_jax.data.faults import FaultCounter
from regionclip_jax.data.pipeline import image_text_batches
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.coco_folder import CocoCaptionsSource, CocoInstancesSource
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource
from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.presets import PRESETS, CLIPConfig
from regionclip_jax.steps.pretrain_step import PretrainSettings
from regionclip_jax.structures import ImageTextBatch
from regionclip_jax.training import schedules
from regionclip_jax.training.initialization import merge_parameters
from regionclip_jax.training.optimizer import make_optimizer

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def choose(table: dict, name: str, key: str):
    """``table[name]``, or an error that lists what there is."""
    if name not in table:
        raise ConfigError(f"{key}: {name!r} is none of {sorted(table)}")
    return table[name]


def compute_dtype(name: str) -> jnp.dtype:
    return choose(_DTYPES, name, "dtype")


def architecture(section: ModelSection) -> CLIPConfig:
    return choose(PRESETS, section.preset, "preset")


def build_model(section: ModelSection, *, frozen_norm: bool) -> CLIP:
    return CLIP(architecture(section), frozen_norm, compute_dtype(section.dtype))


def initial_variables(section: ModelSection, seed: int) -> dict:
    """Variables a model starts from: those of ``init_from``, or fresh ones.

    Raises:
        CheckpointMismatch: ``init_from`` holds another architecture than ``preset``.
    """
    config = architecture(section)
    if not section.init_from:
        logging.warning("%s: no init_from, starts from random weights", section.preset)
        return init_variables(config, jax.random.key(seed))
    variables, card = load_model(section.init_from)
    if card.architecture != config:
        raise CheckpointMismatch(
            f"{section.init_from}: holds {card.preset or card.architecture}, the recipe wants "
            f"preset {section.preset!r}; choose the recipe of that architecture or another file"
        )
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return merge_parameters(shapes, variables, section.init_from)


def build_image_text_source(section: DataSection):
    makers = {
        "array_record": lambda: ArrayRecordSource(section.path),
        "coco_folder": lambda: CocoCaptionsSource(section.path, section.split),
        "tsv_pairs": lambda: TsvPairsSource(section.path),
    }
    make = choose(makers, section.source, "data.source")
    _require_path(section.path, section.source, "data.path")
    source = make()
    logging.info("%r: %d records", source, len(source))
    return source


def build_detection_source(section: EvaluationSection):
    makers = {
        "array_record": lambda: ArrayRecordSource(section.path),
        "coco_folder": lambda: CocoInstancesSource(section.path, section.split),
    }
    make = choose(makers, section.source, "evaluation.source")
    _require_path(section.path, section.source, "evaluation.path")
    source = make()
    logging.info("%r: %d records", source, len(source))
    return source


def _require_path(path: str, source: str, key: str) -> None:
    if not path or not Path(path).exists():
        raise ConfigError(
            f"{key}: {path!r} does not exist; give the folder of your {source} data, e.g. "
            f"--config.{key}=PATH"
        )


def stream_batches(
    section: DataSection, source, *, batch_size: int, seed: int, start_record: int
) -> Iterator[ImageTextBatch]:
    """This process's batches from a record count on; faulty records are counted and limited."""
    faults = FaultCounter(section.fault_fraction, section.fault_minimum)
    stream = image_text_batches(
        source,
        batch_size=batch_size,
        short_side=section.short_side,
        max_long_side=section.max_long_side,
        resize_method=section.resize_method,
        canvas_sizes=section.canvas_sizes,
        flip_probability=section.flip_probability,
        seed=seed,
        start_record=start_record,
        num_threads=section.num_threads,
        num_workers=section.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        context_length=section.context_length,
    )

    def counted():
        try:
            for batch, texts in stream:
                faults.add(len(batch.mask), texts)
                yield batch
        finally:
            stream.close()

    return counted()


def build_schedule(section: OptimizerSection, num_steps: int) -> optax.Schedule:
    makers: dict[str, Callable[[], optax.Schedule]] = {
        "multistep": lambda: schedules.warmup_multistep(
            section.learning_rate,
            boundaries=section.boundaries,
            gamma=section.gamma,
            warmup_steps=section.warmup_steps,
            warmup_factor=section.warmup_factor,
        ),
        "cosine": lambda: schedules.warmup_cosine(
            section.learning_rate, warmup_steps=section.warmup_steps, total_steps=num_steps
        ),
    }
    return choose(makers, section.schedule, "optimizer.schedule")()


def build_optimizer(section: OptimizerSection, num_steps: int) -> optax.GradientTransformation:
    return make_optimizer(
        section.kind,
        build_schedule(section, num_steps),
        weight_decay=section.weight_decay,
        momentum=section.momentum,
        clip_per_tensor_norm=section.clip_per_tensor_norm,
        no_decay_patterns=section.no_decay_patterns,
    )


def pretrain_settings(section: RegionsSection, seed: int) -> PretrainSettings:
    return PretrainSettings(
        num_proposals=section.num_proposals,
        num_regions=section.num_regions,
        box_grid=section.box_grid,
        temperature=section.temperature,
        teacher_temperature=section.teacher_temperature,
        concept_threshold=section.concept_threshold,
        images_per_group=section.images_per_group,
        image_text_weight=section.image_text_weight,
        distillation_weight=section.distillation_weight,
        contrastive_weight=section.contrastive_weight,
        global_box=section.global_box,
        regions_per_chunk=section.regions_per_chunk,
        roi_align=section.roi_align,
        seed=seed,
    )
