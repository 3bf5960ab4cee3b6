"""Run of every training job: resume, loop, metrics, guards, checkpoints, export."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh

from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.artifacts.results import write_settings
from regionclip_jax.artifacts.score_settings import default_scores, softmax_scores
from regionclip_jax.assembly.optimization import build_mesh, build_schedule
from regionclip_jax.assembly.training import EXAMPLES, Materials, Training
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.reporting.progress import Progress
from regionclip_jax.reporting.region_labels import BackgroundImages
from regionclip_jax.reporting.tables import as_markdown, parameters_text, settings_text
from regionclip_jax.reporting.trackers import check_tracker
from regionclip_jax.reporting.writers import make_writer
from regionclip_jax.settings import (
    ConfigError,
    TrainingSettings,
    as_plain,
    fixed_on_resume,
)
from regionclip_jax.sharding.barriers import compile_barrier
from regionclip_jax.sharding.consistency import require_consistent
from regionclip_jax.sharding.global_arrays import (
    abstract_arrays,
    batch_sharding,
    gather,
    local_rows,
    replicated_sharding,
    shard,
    to_global_batch,
)
from regionclip_jax.sharding.partition_rules import parameter_shardings
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.text.tokenizer import TokenizerSource
from regionclip_jax.training import loop
from regionclip_jax.training.checkpointing import TrainingCheckpoints
from regionclip_jax.training.metrics import MetricAccumulator
from regionclip_jax.training.nan_guard import only_if_finite, require_finite

MODEL_FOLDER = "model"
_NUM_DRAWN = 4  # images at every checkpoint


def run(training: Training, workdir: Path) -> Path:
    """Train to ``run.num_steps``, from the newest checkpoint in ``workdir`` if there is one.

    Returns:
        The exported model directory, ``workdir/model``.

    Raises:
        CheckpointMismatch: ``workdir`` holds a run of another recipe.
        ConfigError: the run has more than ``run.num_steps`` steps, or the batch does not divide
            among the devices.
        InconsistentHosts: processes of this run found different data.
        MissingExtra, TrackerError: the tracker did not start.
    """
    check_tracker(training.settings.tracker)
    settings, materials = training.settings, training.open()
    run = settings.run
    require_consistent({"contents": materials.contents})
    mesh = build_mesh(run.batch_size, "run.batch_size", run.fsdp)
    shapes = training.abstract_state()
    shardings = parameter_shardings(shapes, mesh)
    checkpoints = TrainingCheckpoints(
        workdir / "checkpoints",
        max_to_keep=run.checkpoints_to_keep,
        card=resume_card(settings, materials.contents),
        # Runs of older versions have the default value of a new key, and recorded no fingerprint of
        # their data.
        added=resume_card(type(settings)(), {"data": materials.contents.get("data")}),
    )
    # Closing waits for a checkpoint that is being written, also after an error.
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore_latest(abstract_arrays(shapes, shardings))
        if restored is None:
            variables = materials.variables()
            variables = shard(variables, parameter_shardings(variables, mesh))
            create = jax.jit(training.initial_state, out_shardings=shardings, donate_argnums=0)
            state = create(variables)
            start_step = 0
        else:
            state, position = restored
            start_step = position["step"]
            logging.info("%s: resumes after step %d", workdir, start_step)
        if start_step > run.num_steps:
            raise ConfigError(
                f"run.num_steps: {run.num_steps}, but {workdir} holds a run that has done "
                f"{start_step}; ask for more steps, or start another run with another --workdir"
            )
        if jax.process_index() == 0:
            write_settings(workdir, as_plain(settings))
        if start_step < run.num_steps:
            frozen = materials.frozen(workdir)
            frozen = shard(frozen, parameter_shardings(frozen, mesh))
            state = _run_steps(
                workdir,
                settings,
                state,
                start_step,
                checkpoints,
                _on_mesh(training.make_step(mesh), shardings, frozen, mesh),
                materials,
            )
    model = workdir / MODEL_FOLDER
    materials.export(model, gather(state.variables), {"run": settings.job, "step": run.num_steps})
    logging.info("%s: model written", model)
    return model


def as_clip(
    architecture: CLIPConfig, tokenizer: TokenizerSource | None = None, *, sigmoid: bool = False
) -> Callable[[Path, dict, dict], None]:
    """Return the ``export`` of jobs that train only a CLIP; its temperature is the learned one.

    Args:
        tokenizer: as in ``save_model``.
        sigmoid: the loss was a sigmoid with the model's bias, so scores are sigmoids too.
    """

    def export(directory: Path, variables: dict, source: dict) -> None:
        scores = (default_scores if sigmoid else softmax_scores)(variables["params"], None)
        card = ModelCard(architecture, source, scores=scores)
        save_model(directory, variables, card, tokenizer)

    return export


def resume_card(settings: TrainingSettings, contents: Mapping) -> dict:
    """Return the facts that must agree between a checkpoint's run and one that resumes it.

    They include ``run.num_steps`` with a cosine schedule: another length changes the learning rate
    from the first step on.
    """
    card = {"contents": dict(contents), **fixed_on_resume(settings)}
    if settings.optimizer.schedule == "cosine":
        card["run"]["num_steps"] = settings.run.num_steps
    return card


def _on_mesh(step: Callable, shardings, frozen, mesh: Mesh) -> Callable:
    """Return the jitted step over this process's numpy batches; the state keeps its sharding.

    Metrics are replicated; examples stay on the devices of their images.
    """

    def separated(state, frozen, batch):
        state, metrics = step(state, frozen, batch)
        examples = {key: metrics.pop(key) for key in (EXAMPLES,) if key in metrics}
        return state, metrics, examples

    jitted = compile_barrier(
        jax.jit(
            separated,
            in_shardings=(shardings, None, None),
            out_shardings=(shardings, replicated_sharding(mesh), batch_sharding(mesh)),
            donate_argnums=0,
        )
    )

    def run_step(state, batch):
        batch = to_global_batch(batch, mesh)
        # An implicit transfer from host to device in the step is a bug.
        with jax.transfer_guard("disallow"):
            state, metrics, examples = jitted(state, frozen, batch)
        return state, metrics | examples

    return run_step


def _run_steps(
    workdir: Path,
    settings: TrainingSettings,
    state: TrainState,
    start_step: int,
    checkpoints: TrainingCheckpoints,
    run_step: Callable,
    materials: Materials,
) -> TrainState:
    """Run the remaining steps, with metrics, images, guards and checkpoints."""
    run, is_first_process = settings.run, jax.process_index() == 0
    schedule = build_schedule(settings.optimizer, run.num_steps)
    with contextlib.ExitStack() as stack:
        writer = make_writer(
            workdir,
            just_logging=not is_first_process,
            first_step=start_step + 1 if start_step else 0,
            tracker=settings.tracker,
        )
        stack.enter_context(contextlib.closing(writer))
        images = stack.enter_context(contextlib.closing(BackgroundImages(writer.write_images)))
        stack.callback(checkpoints.wait)  # before both are closed: its commit flushes them
        if start_step == 0:
            writer.write_texts(
                0,
                {
                    "config": as_markdown(settings_text(as_plain(settings))),
                    "parameters": as_markdown(parameters_text(state.variables["params"])),
                },
            )
        if checkpoints.set_aside:
            damaged = "\n".join(f"- {text}" for text in checkpoints.set_aside)
            writer.write_texts(start_step, {"damaged_checkpoints": damaged})
        metrics = MetricAccumulator()
        last_step, last_batch, last_examples = start_step, None, None

        def fetch():
            values = metrics.compute()
            require_finite(last_step, values, last_good=checkpoints.latest)
            # The rate of the last update; the first update has schedule(0).
            return values | {"learning_rate": float(schedule(last_step - 1))}

        def step_fn(state, batch):
            nonlocal last_batch, last_examples
            state, step_metrics = run_step(state, batch)
            last_batch, last_examples = batch, step_metrics.pop(EXAMPLES, None)
            return state, step_metrics

        def draw(step_number, state, step_metrics):
            if last_examples is not None and is_first_process:
                # A copy, because a whole batch may be large.
                first = jax.tree.map(lambda x: x[:_NUM_DRAWN].copy(), last_batch)
                examples = last_examples
                images.write(step_number, lambda: materials.draw(first, local_rows(examples)))

        progress = Progress(
            num_steps=run.num_steps,
            images_per_step=run.batch_size,
            fetch_metrics=fetch,
            write_scalars=writer.write_scalars,
        )

        def collect(step_number, state, step_metrics):
            nonlocal last_step
            last_step = step_number
            metrics.add(step_metrics)

        def flush():
            images.wait()
            writer.flush()

        def save(step_number, state, step_metrics):
            with progress.paused():
                checkpoints.save(
                    step_number,
                    state,
                    records=step_number * run.batch_size,
                    # A resumed run writes only the steps after the checkpoint.
                    before_commit=flush,
                )

        guarded_save = only_if_finite(save, checkpoints.latest)

        def save_to_disk(step_number, state, step_metrics):
            guarded_save(step_number, state, step_metrics)
            checkpoints.wait()

        with contextlib.closing(materials.batches(start_step * run.batch_size)) as batches:
            return loop.run(
                step_fn,
                state,
                progress.waiting(batches),
                start_step=start_step,
                num_steps=run.num_steps,
                hooks=[
                    (1, collect),
                    (1, progress.started),
                    (run.log_every, progress.report),
                    (run.checkpoint_every, draw),
                    (run.checkpoint_every, guarded_save),
                ],
                on_preempt=save_to_disk,
            )
