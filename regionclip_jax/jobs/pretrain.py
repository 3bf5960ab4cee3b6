"""RegionCLIP pretraining: a teacher names regions, a student learns from them and captions."""

from collections.abc import Sequence
from pathlib import Path

import optax
from absl import logging

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import variables_hash
from regionclip_jax.artifacts.vocabulary import text_tower_hash
from regionclip_jax.jobs import assembly, concept_pool, streams, training_run
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.settings import ConfigError, ModelSettings, PretrainSettings
from regionclip_jax.steps.pretrain_step import Frozen, make_pretrain_step
from regionclip_jax.steps.train_state import TrainState


def run(settings: PretrainSettings, workdir: Path, concepts: Sequence[str] = ()) -> Path:
    """Trains and returns the student's model directory.

    Args:
        concepts: names of the pool when the recipe names no file.
    """
    source = streams.build_image_text_source(settings.data)
    student = assembly.build_model(settings.student, frozen_norm=True)
    teacher = assembly.build_teacher(settings.teacher)
    assembly.log_dtype("student and localizer", settings.student.dtype)
    assembly.log_dtype("teacher", settings.teacher.dtype)
    student_start = assembly.initial_variables(settings.student, settings.run.seed)
    teacher_variables = (
        student_start
        if _start(settings.teacher) == _start(settings.student)
        else assembly.initial_variables(settings.teacher, settings.run.seed)
    )

    localizer = localizer_variables = None
    if settings.regions.localizer:
        localizer_variables, card = load_localizer(settings.regions.localizer)
        localizer = Localizer(card.architecture, student.dtype)
        logging.info("regions: proposals of %s (%s)", settings.regions.localizer, card.label)
    else:
        logging.info(
            "regions: random boxes; the paper's are a localizer's: --settings.regions.localizer=DIR"
        )

    names = concept_pool.read_names(settings.concepts, concepts)
    logging.info("concept pool: %d names, e.g. %s", len(names), ", ".join(names[:5]))
    student_text_tower = text_tower_hash(student_start["params"])

    def embed_pools() -> Frozen:
        """The text towers are frozen, so both pools are fixed for the whole run."""
        how = (names, settings.concepts.templates)
        student_pool = concept_pool.cached_vocabulary(
            workdir / "vocabulary.npz", student, student_start, *how
        )
        teacher_pool = student_pool
        if student_text_tower != text_tower_hash(teacher_variables["params"]):
            teacher_pool = concept_pool.cached_vocabulary(
                workdir / "teacher_vocabulary.npz", teacher, teacher_variables, *how
            )
        return Frozen(
            teacher=assembly.for_looking(teacher_variables, teacher.dtype),
            teacher_concepts=teacher_pool.embeddings,
            student_concepts=student_pool.embeddings,
            localizer=assembly.in_type(localizer_variables, student.dtype),
        )

    optimizer = assembly.build_optimizer(settings.optimizer, settings.run.num_steps)
    # Each part is split over all devices as well.
    assembly.build_mesh(
        settings.run.batch_size // settings.regions.micro_batches,
        "run.batch_size / regions.micro_batches",
        settings.run.fsdp,
    )
    return training_run.train(
        workdir,
        settings,
        contents={
            "records": len(source),
            "concepts": names,
            "student_text_tower": student_text_tower,
            "teacher": variables_hash(teacher_variables),
            "localizer": localizer_variables and variables_hash(localizer_variables),
        },
        export=training_run.as_clip(assembly.architecture(settings.student)),
        make_variables=lambda: student_start,
        make_state=lambda variables: _build_state(settings, variables, optimizer),
        make_step=lambda: make_pretrain_step(
            student,
            teacher,
            optimizer,
            settings.regions,
            seed=settings.run.seed,
            localizer=localizer,
            image_text=assembly.build_image_text_loss(
                settings.regions.image_text_chunk, settings.run
            ),
        ),
        make_frozen=embed_pools,
        stream=lambda start: streams.stream_batches(
            settings.data,
            source,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=start,
        ),
    )


def _start(model: ModelSettings) -> tuple[str, str]:
    """What decides, with the seed, which weights a model starts from."""
    return model.preset, model.init_from


def _build_state(
    settings: PretrainSettings, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state at step 0.

    Raises:
        ConfigError: the text tower would be trained, and leave the concept pool behind.
    """
    state = assembly.build_state(settings.optimizer, variables, optimizer)
    if "text" in state.params:
        raise ConfigError(
            f"optimizer.frozen_patterns: {list(settings.optimizer.frozen_patterns)} leave "
            "parameters of the text tower to train, but the concept pool is embedded by it once, "
            "at the start; add '^text/'"
        )
    return state
