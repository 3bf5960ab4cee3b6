"""Training a localizer: where things are, whatever they are, from boxes of base classes."""

from pathlib import Path

import jax
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
from regionclip_jax.config import (
    ConfigError,
    LocalizerSection,
    TrainLocalizerConfig,
    as_plain,
)
from regionclip_jax.jobs import assembly, detection_data, proposal_recall, training_run
from regionclip_jax.models.localizer import Localizer, LocalizerConfig, init_localizer
from regionclip_jax.models.localizer_presets import LOCALIZER_PRESETS
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.steps.localizer_step import make_localizer_step
from regionclip_jax.training.initialization import draw_parameters, merge_parameters


def run(config: TrainLocalizerConfig, workdir: Path) -> Path:
    """Trains, measures recall if the recipe names pictures for it, returns the model directory."""
    training_set = detection_data.build_training_set(config.data, mask_size=None)
    section = config.localizer
    architecture = assembly.choose(LOCALIZER_PRESETS, section.preset, "localizer.preset")
    frozen_norm = assembly.norm_is_frozen(section.norm, "localizer.norm")
    localizer = Localizer(
        architecture,
        assembly.compute_dtype(section.dtype),
        frozen_norm,
        assembly.kept_activations(section.kept_activations, "localizer.kept_activations"),
    )
    assembly.log_dtype("localizer", section.dtype)
    optimizer = assembly.build_optimizer(config.optimizer, config.run.num_steps)
    settings = assembly.localizer_settings(config.anchors, config.run)
    _require_canvases(config, architecture)

    def make_step():
        step = make_localizer_step(localizer, optimizer, settings)
        return lambda state, frozen, batch: step(state, batch)

    model = training_run.train(
        workdir,
        config.run,
        name="train_localizer",
        settings=as_plain(config),
        contents={"records": len(training_set), "classes": training_set.category_names},
        export=lambda directory, variables, source: save_localizer(
            directory,
            variables,
            LocalizerCard(architecture, {**source, "classes": list(training_set.category_names)}),
        ),
        make_variables=lambda: initial_localizer(section, architecture, config.run.seed),
        make_state=lambda variables: assembly.build_state(config.optimizer, variables, optimizer),
        make_step=make_step,
        make_frozen=dict,
        stream=lambda start: detection_data.stream(
            config.data,
            training_set,
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            start_record=start,
        ),
    )
    if config.evaluation.path:
        found = proposal_recall.measure(model, config.evaluation, section.dtype)
        if jax.process_index() == 0:
            details = {
                "evaluation": as_plain(config.evaluation),
                "localizer": str(model),
                "dtype": assembly.resolve_dtype(section.dtype),
            }
            write_results(workdir / "results.json", {"localizer": found}, details=details)
            print(comparison_table({"localizer": found}), flush=True)
    return model


def initial_localizer(section: LocalizerSection, architecture: LocalizerConfig, seed: int) -> dict:
    """Variables to start from: random ones, or all or the trunk of those of ``init_from``.

    Raises:
        CheckpointMismatch: ``init_from`` holds another architecture, or no such trunk.
    """
    if not section.init_from:
        logging.warning("%s: no init_from, starts from random weights", section.preset)
        return draw_parameters(init_localizer, architecture, jax.random.key(seed))
    where = Path(section.init_from)
    abstract, wanted = abstract_localizer(architecture), abstract_trunk(architecture)
    if section.init_part not in ("all", "trunk"):
        raise ConfigError(f"localizer.init_part: {section.init_part!r} is none of all, trunk")
    if (where / FOLDER_NAME).exists():
        variables, card = load_localizer(where)
        if section.init_part == "all":
            return merge_parameters(abstract, variables, str(where))
        logging.info("%s: the trunk of %s", where, card.label)
        trunk = {name: tree["trunk"] for name, tree in variables.items()}
    elif (where / TRUNK_FOLDER_NAME).exists() and section.init_part == "trunk":
        variables, card = load_trunk(where)
        logging.info("%s: the trunk of %s", where, card.source)
        trunk = _stages(variables, wanted)
    elif architecture.trunk == "clip" and section.init_part == "trunk":
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
    """Those stages of an image tower that the trunk has; a localizer of one level has no res5."""
    return {
        name: {stage: tree[stage] for stage in wanted[name] if stage in tree}
        for name, tree in variables.items()
    }


def _require_canvases(config: TrainLocalizerConfig, architecture: LocalizerConfig) -> None:
    divisor = architecture.canvas_divisor
    for size in config.data.canvas_sizes:
        if any(side % divisor for side in size):
            raise ConfigError(
                f"data.canvas_sizes: {size}: {config.localizer.preset!r} needs sides that are "
                f"multiples of {divisor}; round them up"
            )
