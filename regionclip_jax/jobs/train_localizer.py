"""Train a localizer (class-agnostic region proposals) on boxes of base classes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from regionclip_jax.artifacts.localizer_checkpoint import (
    FOLDER_NAME,
    TRUNK_FOLDER_NAME,
    abstract_localizer,
    abstract_trunk,
    load_localizer,
    load_trunk,
    save_localizer,
)
from regionclip_jax.artifacts.model_card import CheckpointMismatch, LocalizerCard
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.results import write_results
from regionclip_jax.assembly import detection_data, training_run
from regionclip_jax.assembly.models import compute_dtype, log_dtype, resolve_dtype
from regionclip_jax.assembly.optimization import build_optimizer, build_state
from regionclip_jax.assembly.training import Assumed, Materials, Training
from regionclip_jax.data.sources.fingerprint import content_facts
from regionclip_jax.evaluation.counts import coverage_text
from regionclip_jax.jobs import proposal_recall
from regionclip_jax.models.localizer import Localizer, LocalizerConfig, init_localizer
from regionclip_jax.models.presets import LOCALIZER_PRESETS
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.reporting.writers import write_evaluation
from regionclip_jax.settings import (
    ConfigError,
    LocalizerModelSettings,
    TrainLocalizerSettings,
    as_plain,
    choose,
)
from regionclip_jax.steps.localizer_step import make_localizer_step
from regionclip_jax.training.initialization import draw_parameters, merge_parameters


def run(settings: TrainLocalizerSettings, workdir: Path) -> Path:
    """Train, measure recall if the recipe has images for it, and return the model directory."""
    log_dtype("localizer", settings.localizer.dtype)
    if settings.evaluation.path:
        proposal_recall.check(settings.evaluation)
    model = training_run.run(build(settings), workdir)
    if settings.evaluation.path:
        dtype = settings.localizer.dtype
        found, coverage = proposal_recall.measure(model, settings.evaluation, dtype)
        if jax.process_index() == 0:
            details = {
                "evaluation": as_plain(settings.evaluation),
                "localizer": str(model),
                "dtype": resolve_dtype(dtype),
                "counts": {"localizer": coverage.as_json()},
            }
            write_results(workdir / "results.json", {"localizer": found}, details=details)
            print(comparison_table({"localizer": found}))
            print(coverage_text({"localizer": coverage}), flush=True)
            steps = {"localizer": settings.run.num_steps}
            write_evaluation(workdir, {"localizer": found}, steps, tracker=settings.tracker)
    return model


def build(settings: TrainLocalizerSettings, assumed: Assumed | None = None) -> Training:
    """Describe the training; no shape depends on a file, so ``assumed`` is not used."""
    trained = settings.localizer
    architecture = choose(LOCALIZER_PRESETS, trained.preset, "localizer.preset")
    _require_canvases(settings, architecture)
    localizer = Localizer(
        architecture,
        compute_dtype(trained.dtype),
        trained.norm == "frozen",
        trained.remat,
    )
    optimizer = build_optimizer(settings.optimizer, settings.run.num_steps)

    def make_step(mesh):
        step = make_localizer_step(localizer, optimizer, settings.anchors, seed=settings.run.seed)
        return lambda state, frozen, batch: step(state, batch)

    return Training(
        settings=settings,
        dtype=jnp.dtype(localizer.dtype),
        make_step=make_step,
        initial_state=functools.partial(build_state, settings.optimizer, optimizer=optimizer),
        abstract_variables=lambda: abstract_localizer(architecture),
        abstract_frozen=dict,
        open=lambda: _open(settings, architecture),
    )


def _open(settings: TrainLocalizerSettings, architecture: LocalizerConfig) -> Materials:
    training_set = detection_data.build_training_set(settings.data, mask_size=None)
    names = list(training_set.category_names)
    return Materials(
        contents={**content_facts(training_set), "classes": training_set.category_names},
        variables=lambda: initial_localizer(settings.localizer, architecture, settings.run.seed),
        frozen=lambda workdir: {},
        batches=lambda start: detection_data.stream(
            settings.data,
            training_set,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=start,
        ),
        export=lambda directory, variables, source: save_localizer(
            directory, variables, LocalizerCard(architecture, {**source, "classes": names})
        ),
    )


def initial_localizer(
    trained: LocalizerModelSettings, architecture: LocalizerConfig, seed: int
) -> dict:
    """Return the initial variables: random ones, or all of ``init_from``, or its trunk only.

    Raises:
        CheckpointMismatch: ``init_from`` holds another architecture, or no such trunk.
    """
    if not trained.init_from:
        logging.warning("%s: no init_from, starts from random weights", trained.preset)
        return draw_parameters(init_localizer, architecture, jax.random.key(seed))
    where = Path(trained.init_from)
    abstract, wanted = abstract_localizer(architecture), abstract_trunk(architecture)
    if (where / FOLDER_NAME).exists():
        variables, card = load_localizer(where)
        if trained.init_part == "all":
            return merge_parameters(abstract, variables, str(where))
        logging.info("%s: the trunk of %s", where, card.label)
        trunk = {name: tree["trunk"] for name, tree in variables.items()}
    elif (where / TRUNK_FOLDER_NAME).exists() and trained.init_part == "trunk":
        variables, card = load_trunk(where)
        logging.info("%s: the trunk of %s", where, card.source)
        trunk = _stages(variables, wanted)
    elif architecture.trunk == "clip" and trained.init_part == "trunk":
        variables, _ = load_model(where)
        trunk = _stages({name: tree["visual"] for name, tree in variables.items()}, wanted)
    else:
        raise CheckpointMismatch(
            f"{where}: expected a localizer in {FOLDER_NAME}/, found none; give a directory with "
            "one; or, with localizer.init_part 'trunk', one with an ImageNet ResNet "
            "(scripts/convert_checkpoint.py --trunk), or the CLIP whose image tower a localizer of "
            "trunk 'clip' starts from"
        )
    fresh = draw_parameters(init_localizer, architecture, jax.random.key(seed))
    trunk = merge_parameters(wanted, trunk, str(where))
    return {name: {**tree, "trunk": trunk[name]} for name, tree in fresh.items()}


def _stages(variables: dict, wanted: dict) -> dict:
    """Select an image tower's stages that the trunk has; a single-level localizer has no res5."""
    return {
        name: {stage: tree[stage] for stage in wanted[name] if stage in tree}
        for name, tree in variables.items()
    }


def _require_canvases(settings: TrainLocalizerSettings, architecture: LocalizerConfig) -> None:
    divisor = architecture.canvas_divisor
    for size in settings.data.canvas_sizes:
        if any(side % divisor for side in size):
            raise ConfigError(
                f"data.canvas_sizes: {size}: {settings.localizer.preset!r} needs sides that are "
                f"multiples of {divisor}; round them up"
            )
