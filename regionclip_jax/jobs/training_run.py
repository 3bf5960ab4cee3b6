"""The frame every training job runs in: resume, loop, metrics, guards, checkpoints, export."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import logging

from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.config import RunSection
from regionclip_jax.models.presets import CLIPConfig
from regionclip_jax.reporting.overview import as_markdown, parameters_text, settings_text
from regionclip_jax.reporting.progress import Progress
from regionclip_jax.reporting.writers import make_writer
from regionclip_jax.sharding.global_arrays import replicate, replicated_like, to_global_batch
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.training import loop
from regionclip_jax.training.checkpointing import TrainingCheckpoints
from regionclip_jax.training.metrics import MetricAccumulator
from regionclip_jax.training.nan_guard import only_if_finite, require_finite

MODEL_FOLDER = "model"


def train(
    workdir: Path,
    run: RunSection,
    *,
    name: str,
    settings: dict,
    architecture: CLIPConfig,
    make_state: Callable[[], TrainState],
    make_step: Callable,
    frozen,
    stream: Callable[[int], Iterator],
) -> Path:
    """Trains to ``run.num_steps``, from the newest checkpoint in ``workdir`` if there is one.

    Args:
        name: of the job, for the model's card.
        settings: the recipe as plain values, for TensorBoard and the checkpoints' card.
        make_state: the state at step 0.
        make_step: ``(state, frozen, batch) -> (state, metrics)`` builder; jitted here, once, with
            the state donated.
        frozen: what the step only reads; replicated on the mesh.
        stream: global record count -> this process's batches from there on.

    Returns:
        The model directory that was exported, ``workdir/model``.
    """
    mesh = make_mesh(run.batch_size)
    card = {"job": name, "batch_size": run.batch_size, "seed": run.seed} | {
        key: settings[key] for key in settings if key != "run"
    }
    checkpoints = TrainingCheckpoints(
        workdir / "checkpoints", max_to_keep=run.checkpoints_to_keep, card=card
    )
    restored = checkpoints.restore_latest(replicated_like(jax.eval_shape(make_state), mesh))
    if restored is None:
        state, start_step = replicate(make_state(), mesh), 0
    else:
        state, position = restored
        start_step = position["step"]
        logging.info("%s: resumes after step %d", workdir, start_step)
    frozen = replicate(frozen, mesh)
    step = jax.jit(make_step(), donate_argnums=0)

    def run_step(state, batch):
        batch = to_global_batch(batch, mesh)
        # Whatever would cross from host to device unnoticed in here is a mistake.
        with jax.transfer_guard("disallow"):
            return step(state, frozen, batch)

    is_first_process = jax.process_index() == 0
    with contextlib.closing(make_writer(workdir, just_logging=not is_first_process)) as writer:
        if start_step == 0:
            writer.write_texts(
                0,
                {
                    "config": as_markdown(settings_text(settings)),
                    "parameters": as_markdown(parameters_text(state.variables["params"])),
                },
            )
        metrics = MetricAccumulator()

        def fetch():
            values = metrics.compute()
            require_finite(progress_step[0], values, last_good=checkpoints.latest())
            return values

        progress_step = [start_step]
        progress = Progress(
            num_steps=run.num_steps,
            images_per_step=run.batch_size,
            fetch_metrics=fetch,
            write_scalars=writer.write_scalars,
        )

        def collect(step_number, state, step_metrics):
            progress_step[0] = step_number
            metrics.add(step_metrics)

        def save(step_number, state, step_metrics):
            with progress.paused():
                checkpoints.save(step_number, state, records=step_number * run.batch_size)

        guarded_save = only_if_finite(save, checkpoints.latest)
        if start_step < run.num_steps:
            batches = stream(start_step * run.batch_size)
            with contextlib.closing(batches):
                state = loop.run(
                    run_step,
                    state,
                    batches,
                    start_step=start_step,
                    num_steps=run.num_steps,
                    hooks=[
                        (1, collect),
                        (1, progress.started),
                        (run.log_every, progress.report),
                        (run.checkpoint_every, guarded_save),
                    ],
                    on_preempt=guarded_save,
                )
    checkpoints.close()
    model = workdir / MODEL_FOLDER
    save_model(model, jax.device_get(state.variables), ModelCard(architecture, {"run": name}))
    logging.info("%s: model written", model)
    return model
