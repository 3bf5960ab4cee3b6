"""CLIPSelf: the dense map of a ViT learns the ViT's own embeddings of crops, from images alone."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    save_model,
    variables_hash,
)
from regionclip_jax.artifacts.score_settings import default_scores
from regionclip_jax.assembly import training_run
from regionclip_jax.assembly.models import (
    build_model,
    build_teacher,
    cast_matrices,
    initial_variables,
    log_dtype,
    require_dense,
    tokenizer_source,
    without_text_tower,
)
from regionclip_jax.assembly.optimization import build_optimizer, build_state
from regionclip_jax.assembly.sources import build_image_source
from regionclip_jax.assembly.streams import stream_images
from regionclip_jax.assembly.training import (
    Assumed,
    Materials,
    Training,
    abstract_frozen_localizer,
    localizer_architecture,
)
from regionclip_jax.data.sources.fingerprint import content_facts
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.settings import ConfigError, DistillSettings
from regionclip_jax.steps.distill_step import FrozenTeacher, make_distill_step


def run(settings: DistillSettings, workdir: Path) -> Path:
    """Train and return the model directory, with the localizer if there is one."""
    log_dtype("student and teacher", settings.model.dtype)
    return training_run.run(build(settings), workdir)


def build(settings: DistillSettings, assumed: Assumed | None = None) -> Training:
    """Describe the training.

    Args:
        assumed: replaces the localizer if only shapes are needed.
    """
    student, teacher = build_model(settings.model, frozen_norm=True), build_teacher(settings.model)
    require_dense(student.config)
    optimizer = build_optimizer(settings.optimizer, settings.run.num_steps)
    architecture = None
    if settings.regions.boxes == "proposals":
        architecture = localizer_architecture(settings.regions.localizer, assumed)
        if architecture is None:
            raise ConfigError(
                "regions.localizer: '' with boxes 'proposals'; give its model directory, or a "
                "preset with --localizer where a recipe is only compiled, or set regions.boxes to "
                "'patches'"
            )
    localizer = Localizer(architecture, student.dtype) if architecture else None

    def make_step(mesh):
        return make_distill_step(
            student,
            teacher,
            optimizer,
            settings.regions,
            seed=settings.run.seed,
            localizer=localizer,
        )

    def abstract_frozen() -> FrozenTeacher:
        return FrozenTeacher(
            teacher=jax.eval_shape(
                lambda variables: without_text_tower(variables, teacher.dtype),
                abstract_variables(teacher.config),
            ),
            localizer=abstract_frozen_localizer(architecture, student.dtype),
        )

    return Training(
        settings=settings,
        dtype=jnp.dtype(student.dtype),
        make_step=make_step,
        initial_state=functools.partial(build_state, settings.optimizer, optimizer=optimizer),
        abstract_variables=lambda: abstract_variables(student.config),
        abstract_frozen=abstract_frozen,
        open=lambda: _open(settings, student),
    )


def _open(settings: DistillSettings, student: CLIP) -> Materials:
    source = build_image_source(settings.data)
    start = initial_variables(settings.model, settings.run.seed)
    tokenizer = tokenizer_source(settings.model)
    localizer = card = None
    if settings.regions.boxes == "proposals":
        localizer, card = load_localizer(settings.regions.localizer)

    def export(directory: Path, variables: dict, source: dict) -> None:
        if localizer is not None:
            save_localizer(directory, localizer, card)
        mixed = mix(variables, start, settings.student_share)
        scores = default_scores(mixed["params"], card and card.architecture)
        card_ = ModelCard(student.config, source, scores=scores)
        save_model(directory, mixed, card_, tokenizer)

    return Materials(
        contents={
            **content_facts(source),
            "start": variables_hash(start),
            "localizer": localizer and variables_hash(localizer),
        },
        variables=lambda: start,
        frozen=lambda workdir: FrozenTeacher(
            teacher=without_text_tower(start, student.dtype),
            localizer=cast_matrices(localizer, student.dtype),
        ),
        batches=lambda first: stream_images(
            settings.data,
            source,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=first,
        ),
        export=export,
    )


def mix(trained: dict, start: dict, share: float) -> dict:
    """Return ``share * trained + (1 - share) * start`` of every array; equal numbers stay equal."""

    def mean(a, b):
        a, b = np.asarray(a), np.asarray(b)
        return np.where(a == b, a, share * a + (1 - share) * b).astype(a.dtype)

    return jax.tree.map(mean, trained, start)
