"""Build models, optimizers and losses from settings (data: ``streams``)."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.losses.image_text import ImageTextLoss, image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)
from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.towers import IMAGE_TOWERS, CLIPConfig, kind_of
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.settings import (
    ConfigError,
    DetectorObjective,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    TrainedModelSettings,
)
from regionclip_jax.sharding.mesh import DATA_AXIS, FSDP_AXIS, make_mesh, require_divisible
from regionclip_jax.steps.predict_step import FindRegions, given_boxes, proposals_of, windows
from regionclip_jax.steps.train_state import TrainState, create_train_state
from regionclip_jax.training import schedules
from regionclip_jax.training.initialization import draw_parameters, merge_parameters
from regionclip_jax.training.optimizer import make_optimizer

Tree = TypeVar("Tree")

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_AUTO = "auto"
_CPU_FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"


def choose(table: dict, name: str, key: str):
    """Return ``table[name]``, or raise a ConfigError that lists the choices."""
    _require_one_of(table, name, key)
    return table[name]


def _require_one_of(names: Iterable[str], name: str, key: str) -> None:
    if name not in names:
        raise ConfigError(f"{key}: {name!r} is none of {sorted(names)}")


@contextlib.contextmanager
def blame(key: str) -> Iterator[None]:
    """Add the config error context ``key``: report a ValueError within as an error of the recipe.

    Use it to build objects from settings, never around training, where a ValueError is a bug and
    keeps its traceback.

    Raises:
        ConfigError: instead of a plain ValueError.
    """
    try:
        yield
    except (ConfigError, CheckpointMismatch):
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def resolve_dtype(name: str) -> str:
    """Return "float32" or "bfloat16" for a recipe's ``dtype``.

    "auto" depends on the target of ``ops.backend``, so programs compiled for absent accelerators
    get the type of those accelerators.

    Raises:
        ConfigError: ``name`` is not a type of a recipe.
    """
    _require_one_of((_AUTO, *_DTYPES), name, "dtype")
    if name != _AUTO:
        return name
    return "float32" if target_backend() == "cpu" else "bfloat16"


def compute_dtype(name: str) -> jnp.dtype:
    """Return the computation type of ``resolve_dtype``; warn where XLA gets it wrong."""
    resolved = resolve_dtype(name)
    if resolved == "bfloat16" and target_backend() == "cpu" and is_unsound_on_cpus():
        logging.warning(
            "bfloat16 on a CPU: XLA of jax %s returns NaN for the convolutions of CLIP's ResNets; "
            "set dtype to float32, or the environment variable XLA_FLAGS to %s=",
            jax.__version__,
            _CPU_FUSIONS,
        )
    return _DTYPES[resolved]


def is_unsound_on_cpus() -> bool:
    """Return whether XLA of this JAX makes NaN of bfloat16 convolutions on CPUs.

    Seen with jax 0.12.0, not with 0.10. An empty list of fusions in ``XLA_FLAGS`` avoids it.
    """
    return jax.__version_info__ >= (0, 12) and _CPU_FUSIONS not in os.environ.get("XLA_FLAGS", "")


def log_dtype(part: str, name: str) -> None:
    """Log the computation type of a part of a job, and its reason."""
    logging.info(
        "%s: computing in %s (dtype=%s on %s)", part, resolve_dtype(name), name, target_backend()
    )


def architecture(settings: ModelSettings) -> CLIPConfig:
    return choose(PRESETS, settings.preset, "preset")


def build_model(settings: TrainedModelSettings, *, frozen_norm: bool) -> CLIP:
    return CLIP(
        architecture(settings),
        frozen_norm,
        compute_dtype(settings.dtype),
        settings.remat,
    )


def build_teacher(settings: ModelSettings) -> CLIP:
    return CLIP(architecture(settings), dtype=compute_dtype(settings.dtype))


def initial_variables(settings: ModelSettings, seed: int) -> dict:
    """Return the initial variables of a model: those of ``init_from``, or random ones.

    Raises:
        CheckpointMismatch: ``init_from`` holds another architecture than ``preset``.
    """
    config = architecture(settings)
    if not settings.init_from:
        logging.warning("%s: no init_from, starts from random weights", settings.preset)
        return draw_parameters(init_variables, config, jax.random.key(seed))
    variables, card = load_model(settings.init_from)
    if card.architecture != config:
        raise CheckpointMismatch(
            f"{settings.init_from}: holds {card.label}, the recipe wants "
            f"preset {settings.preset!r}; choose the recipe of that architecture or another file"
        )
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return merge_parameters(shapes, variables, settings.init_from)


def in_type(variables: Tree, dtype: jnp.dtype) -> Tree:
    """Return frozen variables with matrices and kernels in the type of the computation.

    Frozen variables need no float32 copy, which would waste memory. Vectors, such as the statistics
    of norms, keep their type.
    """
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, variables)


def for_looking(variables: dict, dtype: jnp.dtype) -> dict:
    """Return a frozen CLIP's variables without its text tower, cast by ``in_type``."""
    return in_type(
        {
            name: {branch: part for branch, part in tree.items() if branch != "text"}
            for name, tree in variables.items()
        },
        dtype,
    )


def build_mesh(batch_size: int, key: str, fsdp: int = 1) -> Mesh:
    """Return the mesh of all devices for batches of this size.

    Args:
        batch_size: size of the global batch.
        key: key of the batch size, for errors.
        fsdp: number of devices that share one copy of parameters and optimizer state.
    """
    with blame("run.fsdp"):
        mesh = make_mesh(fsdp=fsdp)
    with blame(key):
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
    with blame("optimizer"):
        return make()


def build_optimizer(settings: OptimizerSettings, num_steps: int) -> optax.GradientTransformation:
    schedule = build_schedule(settings, num_steps)
    with blame("optimizer"):
        return make_optimizer(
            settings.kind,
            schedule,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            clip_per_tensor_norm=settings.clip_per_tensor_norm,
            no_decay_patterns=settings.no_decay_patterns,
        )


def build_state(
    settings: OptimizerSettings, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """Build the state at step 0; refuse patterns that match no parameter."""
    with blame("optimizer"):
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


def image_text_loss_on(mesh: Mesh, chunk: int | None) -> ImageTextLoss:
    """Return the image-text loss: the whole matrix, or chunks, in a ring over several devices."""
    if chunk is None:
        return image_text_loss
    if mesh.size == 1:
        return functools.partial(chunked_image_text_loss, chunk=chunk)
    return functools.partial(
        ring_image_text_loss, chunk=chunk, mesh=mesh, axis=(DATA_AXIS, FSDP_AXIS)
    )


def require_detector_fits(settings: DetectorObjective, clip: CLIPConfig) -> None:
    """Refuse an objective that the model does not support.

    Raises:
        ConfigError: masks without maps of regions, or a random image tower without batch norms.
    """
    lacks_maps = settings.with_masks and clip.image.crop_channels is None
    lacks_norms = settings.image_tower == "random" and not clip.image.has_batch_norms
    if lacks_maps or lacks_norms:
        kind = kind_of(clip.image, IMAGE_TOWERS)
        raise ConfigError(
            f"model.preset: an image tower of the family {kind!r} has neither maps of regions for "
            "masks nor batch norms for a random image tower; choose a ResNet, or "
            "detector.mask_size None and image_tower 'pretrained'"
        )


def build_find_regions(settings: EvaluationSettings, localizer: Localizer | None) -> FindRegions:
    """Return the source of a model's regions; only "localizer" uses ``localizer``."""
    if settings.regions == "ground_truth":
        return given_boxes
    if settings.regions == "windows":
        return windows(settings.window_sides)
    return proposals_of(localizer, settings.proposals)
