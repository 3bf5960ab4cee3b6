"""Whole-image contrastive training of a CLIP from captions."""

import functools
from pathlib import Path

import jax.numpy as jnp

from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.assembly import training_run
from regionclip_jax.assembly.models import (
    build_model,
    initial_variables,
    log_dtype,
    require_caption_length,
    tokenizer_source,
)
from regionclip_jax.assembly.optimization import (
    build_optimizer,
    build_state,
    image_text_loss_on,
    require_learned_sigmoid,
)
from regionclip_jax.assembly.sources import build_image_text_source
from regionclip_jax.assembly.streams import stream_batches
from regionclip_jax.assembly.training import Assumed, Materials, Training
from regionclip_jax.data.sources.fingerprint import content_facts
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.settings import TrainClipSettings
from regionclip_jax.steps.train_clip_step import make_train_clip_step


def run(settings: TrainClipSettings, workdir: Path) -> Path:
    """Train and return the model directory."""
    log_dtype("model", settings.model.dtype)
    return training_run.run(build(settings), workdir)


def build(settings: TrainClipSettings, assumed: Assumed | None = None) -> Training:
    """Describe the training; no shape depends on a file, so ``assumed`` is not used."""
    sigmoid = settings.has_sigmoid
    model = build_model(settings.model, frozen_norm=False, logit_bias=sigmoid)
    require_caption_length(settings.data, model.config.text)
    optimizer = build_optimizer(settings.optimizer, settings.run.num_steps)

    def make_step(mesh):
        image_text = image_text_loss_on(mesh, settings.image_text_chunk)
        step = make_train_clip_step(model, optimizer, image_text, sigmoid=sigmoid)
        return lambda state, frozen, batch: step(state, batch)

    return Training(
        settings=settings,
        dtype=jnp.dtype(model.dtype),
        make_step=make_step,
        initial_state=functools.partial(build_state, settings.optimizer, optimizer=optimizer),
        abstract_variables=lambda: abstract_variables(model.config),
        abstract_frozen=dict,
        open=lambda: _open(settings, model.config),
    )


def _open(settings: TrainClipSettings, architecture: CLIPConfig) -> Materials:
    source = build_image_text_source(settings.data)
    tokenizer, sigmoid = tokenizer_source(settings.model), settings.has_sigmoid

    def variables() -> dict:
        start = initial_variables(settings.model, settings.run.seed, logit_bias=sigmoid)
        if sigmoid:
            require_learned_sigmoid(settings.optimizer, start["params"])
        return start

    return Materials(
        contents=content_facts(source),
        variables=variables,
        frozen=lambda workdir: {},
        batches=lambda start: stream_batches(
            settings.data,
            source,
            tokenizer=tokenizer,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=start,
        ),
        export=training_run.as_clip(architecture, tokenizer, sigmoid=sigmoid),
    )
