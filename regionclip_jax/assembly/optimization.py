"""Build the mesh, the optimizer, the train state and the image-text loss from settings."""

import functools
import re
from collections.abc import Callable

import optax
from jax.sharding import Mesh

from regionclip_jax.losses.image_text import ImageTextLoss, image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)
from regionclip_jax.models.clip import SIGMOID_BIAS, SIGMOID_SCALE, logit_scale_and_bias
from regionclip_jax.settings import ConfigError, OptimizerSettings, choose, config_context
from regionclip_jax.sharding.mesh import DATA_AXIS, FSDP_AXIS, make_mesh, require_divisible
from regionclip_jax.steps.train_state import TrainState, create_train_state
from regionclip_jax.training import schedules
from regionclip_jax.training.optimizer import make_optimizer


def build_mesh(batch_size: int, key: str, fsdp: int = 1) -> Mesh:
    """Return the mesh of all devices for batches of this size.

    Args:
        batch_size: size of the global batch.
        key: key of the batch size, for errors.
        fsdp: number of devices that share one copy of parameters and optimizer state.
    """
    with config_context("run.fsdp"):
        mesh = make_mesh(fsdp=fsdp)
    with config_context(key):
        require_divisible(batch_size, mesh)
    return mesh


def build_schedule(settings: OptimizerSettings, num_steps: int) -> optax.Schedule:
    makers: dict[str, Callable[[], optax.Schedule]] = {
        "multistep": lambda: schedules.warmup_multistep(
            settings.learning_rate,
            boundaries=settings.boundaries,
            gamma=settings.gamma,
            warmup_steps=settings.warmup_steps,
            warmup_factor=settings.warmup_factor,
        ),
        "cosine": lambda: schedules.warmup_cosine(
            settings.learning_rate, warmup_steps=settings.warmup_steps, total_steps=num_steps
        ),
    }
    make = choose(makers, settings.schedule, "optimizer.schedule")
    with config_context("optimizer"):
        return make()


def build_optimizer(settings: OptimizerSettings, num_steps: int) -> optax.GradientTransformation:
    schedule = build_schedule(settings, num_steps)
    with config_context("optimizer"):
        optimizer = make_optimizer(
            settings.kind,
            schedule,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            beta2=settings.beta2,
            epsilon=settings.epsilon,
            clip_per_tensor_norm=settings.clip_per_tensor_norm,
            no_decay_patterns=settings.no_decay_patterns,
        )
    if settings.clip_global_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(settings.clip_global_norm), optimizer)


def build_state(
    settings: OptimizerSettings, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """Build the state at step 0; refuse patterns that match no parameter."""
    with config_context("optimizer"):
        return create_train_state(variables, settings.frozen_patterns, optimizer)


def build_state_beside_text(
    settings: OptimizerSettings, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """Build the state at step 0 of a training that embeds its names once, at the start.

    Raises:
        ConfigError: the text tower would be trained, which would invalidate the embeddings.
    """
    state = build_state(settings, variables, optimizer)
    if "text" in state.params:
        raise ConfigError(
            f"optimizer.frozen_patterns: {list(settings.frozen_patterns)} leave parameters of the "
            "text tower to train, but concepts and classes are embedded by it once, at the start; "
            "add '^text/'"
        )
    return state


def require_learned_sigmoid(settings: OptimizerSettings, params: dict) -> None:
    """Refuse a sigmoid loss whose scale or bias would stay at SigLIP's initial value.

    Raises:
        ConfigError: the parameters have that bias, and a pattern freezes it or the scale.
    """
    _, bias = logit_scale_and_bias(params)
    names = ("logit_scale", "logit_bias")
    frozen = [
        pattern
        for pattern in settings.frozen_patterns
        if any(re.search(pattern, name) for name in names)
    ]
    if frozen and float(bias) == SIGMOID_BIAS:
        raise ConfigError(
            f"optimizer.frozen_patterns: {frozen} freeze scale {SIGMOID_SCALE:g} or bias "
            f"{SIGMOID_BIAS:g}, from which a model without a bias starts to learn a sigmoid; take "
            "them out"
        )


def image_text_loss_on(mesh: Mesh, chunk: int | None) -> ImageTextLoss:
    """Return the image-text loss: the whole matrix, or chunks, in a ring over several devices."""
    if chunk is None:
        return image_text_loss
    if mesh.size == 1:
        return functools.partial(chunked_image_text_loss, chunk=chunk)
    return functools.partial(
        ring_image_text_loss, chunk=chunk, mesh=mesh, axis=(DATA_AXIS, FSDP_AXIS)
    )
