"""One update of whole-image contrastive training (CLIP), with live batch norm."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from regionclip_jax.losses.image_text import ImageTextLoss, image_text_loss
from regionclip_jax.models.clip import CLIP, logit_scale_and_bias
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.steps.train_state import TrainState, apply_gradients, model_variables
from regionclip_jax.structures import ImageTextBatch

# CLIP's limit for the factor of the cosines.
MAX_LOGIT_SCALE = 100.0


def make_train_clip_step(
    model: CLIP,
    optimizer: optax.GradientTransformation,
    image_text: ImageTextLoss = image_text_loss,
    *,
    sigmoid: bool = False,
) -> Callable[[TrainState, ImageTextBatch], tuple[TrainState, dict]]:
    """Build the step. ``model`` has ``frozen_norm=False``; the caller applies ``jax.jit``.

    Args:
        image_text: the form of the loss: plain, or one of ``losses.image_text_blockwise``.
        sigmoid: SigLIP's loss, of a model with a bias, without CLIP's limit of the scale; False is
            the softmax.
    """

    def step(state: TrainState, batch: ImageTextBatch) -> tuple[TrainState, dict]:
        pixels = normalize_images(batch.images, batch.sizes, model.config.preprocessing)

        def loss_fn(params):
            variables = model_variables(params, state.frozen_params, state.batch_stats)
            (images, texts), updated = model.apply(
                variables, pixels, batch.tokens, mutable=["batch_stats"]
            )
            log_scale, bias = logit_scale_and_bias(variables["params"])
            if not sigmoid:
                log_scale, bias = jnp.minimum(log_scale, math.log(MAX_LOGIT_SCALE)), None
            temperature = jnp.exp(-log_scale)
            loss = image_text(images, texts, batch.mask, temperature, bias)
            return loss, (updated["batch_stats"], temperature)

        (loss, (batch_stats, temperature)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        metrics = {
            "loss": loss,
            "temperature": temperature,
            "gradient_norm": optax.tree.norm(gradients),
            "skipped_records": (~batch.mask).sum(),
        }
        return apply_gradients(state, gradients, optimizer, batch_stats), metrics

    return step
