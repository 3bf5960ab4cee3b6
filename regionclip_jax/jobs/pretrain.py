"""RegionCLIP pretraining: a teacher labels regions; a student learns from them and captions."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    save_model,
    variables_hash,
)
from regionclip_jax.artifacts.score_settings import default_scores, softmax_scores
from regionclip_jax.artifacts.vocabulary import FILE_NAME as VOCABULARY_NAME
from regionclip_jax.artifacts.vocabulary import Vocabulary, require_same_names, text_tower_hash
from regionclip_jax.assembly import concept_pool, training_run
from regionclip_jax.assembly.models import (
    build_model,
    build_teacher,
    cast_matrices,
    initial_variables,
    log_dtype,
    require_caption_length,
    tokenizer_source,
    without_text_tower,
)
from regionclip_jax.assembly.optimization import (
    build_mesh,
    build_optimizer,
    build_state_beside_text,
    image_text_loss_on,
    require_learned_sigmoid,
)
from regionclip_jax.assembly.sources import build_image_text_source
from regionclip_jax.assembly.streams import stream_batches
from regionclip_jax.assembly.training import (
    EXAMPLES,
    Assumed,
    Materials,
    Training,
    abstract_frozen_localizer,
    array,
    localizer_architecture,
)
from regionclip_jax.data.sources.fingerprint import content_facts
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer, LocalizerConfig
from regionclip_jax.reporting.region_labels import draw_labelled_regions
from regionclip_jax.settings import (
    ModelSettings,
    PretrainObjective,
    PretrainSettings,
    ScoreSettings,
)
from regionclip_jax.steps.pretrain_step import Frozen, make_labelling_step


def run(settings: PretrainSettings, workdir: Path, concepts: Sequence[str] = ()) -> Path:
    """Train and return the student's model directory, with the concepts and the localizer.

    Args:
        concepts: names of the pool if the recipe names no file.
    """
    log_dtype("student and localizer", settings.student.dtype)
    log_dtype("teacher", settings.teacher.dtype)
    # Each micro-batch is sharded over all devices too.
    build_mesh(
        settings.run.batch_size // settings.regions.micro_batches,
        "run.batch_size / regions.micro_batches",
        settings.run.fsdp,
    )
    return training_run.run(build(settings, concepts=concepts), workdir)


def build(
    settings: PretrainSettings, assumed: Assumed | None = None, concepts: Sequence[str] = ()
) -> Training:
    """Describe the training.

    Args:
        assumed: replaces the localizer and the concept pool if only shapes are needed.
        concepts: names of the pool if the recipe names no file.
    """
    student = build_model(
        settings.student, frozen_norm=True, logit_bias=settings.regions.has_sigmoid
    )
    require_caption_length(settings.data, student.config.text)
    teacher = build_teacher(settings.teacher)
    optimizer = build_optimizer(settings.optimizer, settings.run.num_steps)
    architecture = localizer_architecture(settings.regions.localizer, assumed)
    localizer = Localizer(architecture, student.dtype) if architecture else None

    def make_step(mesh):
        labelling_step = make_labelling_step(
            student,
            teacher,
            optimizer,
            settings.regions,
            seed=settings.run.seed,
            localizer=localizer,
            image_text=image_text_loss_on(mesh, settings.regions.image_text_chunk),
        )

        def step(state, frozen, batch):
            state, metrics, labelled = labelling_step(state, frozen, batch)
            return state, metrics | {EXAMPLES: labelled}

        return step

    def abstract_frozen() -> Frozen:
        num_names = (assumed or Assumed()).num_names
        return Frozen(
            teacher=jax.eval_shape(
                lambda variables: without_text_tower(variables, teacher.dtype),
                abstract_variables(teacher.config),
            ),
            teacher_concepts=array(num_names, teacher.config.embed_dim),
            student_concepts=array(num_names, student.config.embed_dim),
            localizer=abstract_frozen_localizer(architecture, student.dtype),
        )

    return Training(
        settings=settings,
        dtype=jnp.dtype(student.dtype),
        make_step=make_step,
        initial_state=functools.partial(
            build_state_beside_text, settings.optimizer, optimizer=optimizer
        ),
        abstract_variables=lambda: abstract_variables(student.config),
        abstract_frozen=abstract_frozen,
        open=lambda: _open(settings, student, teacher, concepts),
    )


def _open(
    settings: PretrainSettings, student: CLIP, teacher: CLIP, concepts: Sequence[str]
) -> Materials:
    source = build_image_text_source(settings.data)
    seed = settings.run.seed
    start = initial_variables(settings.student, seed, logit_bias=student.config.logit_bias)
    if settings.regions.has_sigmoid:
        require_learned_sigmoid(settings.optimizer, start["params"])
    teacher_variables = start
    # A sigmoid may have given the student a bias, which its own start as the teacher lacks.
    same_bias = teacher.config.logit_bias == student.config.logit_bias
    if not same_bias or _origin(settings.teacher) != _origin(settings.student):
        teacher_variables = initial_variables(settings.teacher, seed)
    localizer = card = None
    if settings.regions.localizer:
        localizer, card = load_localizer(settings.regions.localizer)
        logging.info("regions: proposals of %s (%s)", settings.regions.localizer, card.label)
    else:
        logging.info(
            "regions: random boxes; the paper's are a localizer's: --config.regions.localizer=DIR"
        )
    names = concept_pool.pool_names(settings.concepts, concepts)
    logging.info("concept pool: %d names, e.g. %s", len(names), ", ".join(names[:5]))
    text_tower = text_tower_hash(start["params"])

    how = (names, settings.concepts.templates)
    tokenizer = tokenizer_source(settings.student)

    def pool_of_student(workdir: Path) -> Vocabulary:
        path = workdir / VOCABULARY_NAME
        return concept_pool.cached_vocabulary(path, student, start, *how, tokenizer)

    def frozen(workdir: Path) -> Frozen:
        """Return the frozen parts; the text towers are frozen, so both pools are constant."""
        teacher_pool = student_pool = pool_of_student(workdir)
        if text_tower != text_tower_hash(teacher_variables["params"]):
            teacher_pool = concept_pool.cached_vocabulary(
                workdir / "teacher_vocabulary.npz", teacher, teacher_variables, *how,
                tokenizer_source(settings.teacher),
            )  # fmt: skip
            require_same_names(student_pool, teacher_pool)
        return Frozen(
            teacher=without_text_tower(teacher_variables, teacher.dtype),
            teacher_concepts=teacher_pool.embeddings,
            student_concepts=student_pool.embeddings,
            localizer=cast_matrices(localizer, student.dtype),
        )

    def export(directory: Path, variables: dict, source: dict) -> None:
        if localizer is not None:
            save_localizer(directory, localizer, card)
        concept_pool.export(pool_of_student(directory.parent), directory)
        scores = _scores(settings.regions, variables["params"], card and card.architecture)
        student_card = ModelCard(student.config, source, scores=scores)
        save_model(directory, variables, student_card, tokenizer)

    return Materials(
        contents={
            **content_facts(source),
            "concepts": names,
            "student_text_tower": text_tower,
            "teacher": variables_hash(teacher_variables),
            "localizer": localizer and variables_hash(localizer),
        },
        variables=lambda: start,
        frozen=frozen,
        batches=lambda first: stream_batches(
            settings.data,
            source,
            tokenizer=tokenizer,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=first,
        ),
        export=export,
        draw=functools.partial(draw_labelled_regions, concepts=names),
    )


def _scores(
    regions: PretrainObjective, params: dict, localizer: LocalizerConfig | None
) -> ScoreSettings:
    """Return the settings of the student's scores: regions as the training chose and classified.

    Only their numbers are those of a converted model: detection needs more regions than a step.
    """
    if regions.region_activation == "sigmoid":
        own = default_scores(params, localizer)
    else:
        own = softmax_scores(params, localizer)
        detection = dataclasses.replace(own.detection, temperature=regions.temperature)
        own = dataclasses.replace(own, detection=detection)
    chosen = regions.proposals
    proposals = dataclasses.replace(
        own.proposals,
        nms_threshold=chosen.nms_threshold,
        voting_threshold=chosen.voting_threshold,
    )
    return dataclasses.replace(own, proposals=proposals)


def _origin(model: ModelSettings) -> tuple[str, str]:
    """Return the settings that determine, with the seed, a model's initial weights."""
    return model.preset, model.init_from
