"""RegionCLIP pretraining: a teacher names regions, a student learns from them and captions."""

from collections.abc import Sequence
from pathlib import Path

import optax
from absl import logging

from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import variables_hash
from regionclip_jax.artifacts.vocabulary import text_tower_hash
from regionclip_jax.config import ConfigError, ModelSection, PretrainConfig, as_plain
from regionclip_jax.jobs import assembly, concept_pool, streams, training_run
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.steps.pretrain_step import Frozen, make_pretrain_step
from regionclip_jax.steps.train_state import TrainState


def run(config: PretrainConfig, workdir: Path, concepts: Sequence[str] = ()) -> Path:
    """Trains and returns the student's model directory.

    Args:
        concepts: names of the pool when the recipe names no file.
    """
    source = streams.build_image_text_source(config.data)
    student = assembly.build_model(config.student, frozen_norm=True)
    teacher = assembly.build_teacher(config.teacher)
    assembly.log_dtype("student and localizer", config.student.dtype)
    assembly.log_dtype("teacher", config.teacher.dtype)
    student_start = assembly.initial_variables(config.student, config.run.seed)
    teacher_variables = (
        student_start
        if _start(config.teacher) == _start(config.student)
        else assembly.initial_variables(config.teacher, config.run.seed)
    )

    localizer = localizer_variables = None
    if config.regions.localizer:
        localizer_variables, card = load_localizer(config.regions.localizer)
        localizer = Localizer(card.architecture, student.dtype)
        logging.info("regions: proposals of %s (%s)", config.regions.localizer, card.label)
    else:
        logging.info(
            "regions: random boxes; the paper's are a localizer's: --config.regions.localizer=DIR"
        )

    names = concept_pool.read_names(config.concepts, concepts)
    logging.info("concept pool: %d names, e.g. %s", len(names), ", ".join(names[:5]))
    student_text_tower = text_tower_hash(student_start["params"])

    def embed_pools() -> Frozen:
        """The text towers are frozen, so both pools are fixed for the whole run."""
        how = (names, config.concepts.templates)
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

    optimizer = assembly.build_optimizer(config.optimizer, config.run.num_steps)
    settings = assembly.pretrain_settings(config.regions, config.run)
    # Each part is split over all devices as well.
    assembly.build_mesh(
        config.run.batch_size // settings.micro_batches,
        "run.batch_size / regions.micro_batches",
        config.run.fsdp,
    )
    return training_run.train(
        workdir,
        config.run,
        name="pretrain",
        settings=as_plain(config),
        contents={
            "records": len(source),
            "concepts": names,
            "student_text_tower": student_text_tower,
            "teacher": variables_hash(teacher_variables),
            "localizer": localizer_variables and variables_hash(localizer_variables),
        },
        export=training_run.as_clip(assembly.architecture(config.student)),
        make_variables=lambda: student_start,
        make_state=lambda variables: _build_state(config, variables, optimizer),
        make_step=lambda: make_pretrain_step(
            student,
            teacher,
            optimizer,
            settings,
            localizer,
            assembly.build_image_text_loss(config.regions.image_text_chunk, config.run),
        ),
        make_frozen=embed_pools,
        stream=lambda start: streams.stream_batches(
            config.data,
            source,
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            start_record=start,
        ),
    )


def _start(section: ModelSection) -> tuple[str, str]:
    """What decides, with the seed, which weights a model starts from."""
    return section.preset, section.init_from


def _build_state(
    config: PretrainConfig, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state at step 0.

    Raises:
        ConfigError: the text tower would be trained, and leave the concept pool behind.
    """
    state = assembly.build_state(config.optimizer, variables, optimizer)
    if "text" in state.params:
        raise ConfigError(
            f"optimizer.frozen_patterns: {list(config.optimizer.frozen_patterns)} leave parameters "
            "of the text tower to train, but the concept pool is embedded by it once, at the "
            "start; add '^text/'"
        )
    return state
