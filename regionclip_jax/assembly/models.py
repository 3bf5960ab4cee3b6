"""Build models and their initial variables from settings; resolve the computation type."""

import dataclasses
import typing
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from regionclip_jax.artifacts.detector_heads import HeadsConfig
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.tokenizer_file import tokenizer_of
from regionclip_jax.models.clip import (
    CLIP,
    SIGMOID_BIAS,
    SIGMOID_SCALE,
    init_variables,
    with_initial_bias,
)
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.patch_grid import PatchTowerConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.towers import (
    IMAGE_TOWERS,
    CLIPConfig,
    TextTowerConfig,
    block_kinds,
    dense_kinds,
    kind_of,
    num_blocks,
)
from regionclip_jax.models.vit_pyramid import PyramidConfig
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.settings import (
    CaptionDataSettings,
    ConfigError,
    DetectorObjective,
    EvaluationSettings,
    ModelSettings,
    ScoreSettings,
    TrainedModelSettings,
    choose,
    completed,
)
from regionclip_jax.steps.predict_step import FindRegions, given_boxes, proposals_of, windows
from regionclip_jax.text.tokenizer import TokenizerSource, needs_file
from regionclip_jax.training.initialization import draw_parameters, merge_parameters

Tree = TypeVar("Tree")

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_AUTO = "auto"


def resolve_dtype(name: str) -> str:
    """Return "float32" or "bfloat16" for a recipe's ``dtype``.

    "auto" depends on the target of ``ops.backend``, so programs compiled for absent accelerators
    get the type of those accelerators.

    Raises:
        ConfigError: ``name`` is not a type of a recipe.
    """
    choose({_AUTO: None, **_DTYPES}, name, "dtype")
    if name != _AUTO:
        return name
    return "float32" if target_backend() == "cpu" else "bfloat16"


def compute_dtype(name: str) -> jnp.dtype:
    """Return the computation type of ``resolve_dtype``."""
    return _DTYPES[resolve_dtype(name)]


def log_dtype(part: str, name: str) -> None:
    """Log the computation type of a part of a job, and its reason."""
    logging.info(
        "%s: computing in %s (dtype=%s on %s)", part, resolve_dtype(name), name, target_backend()
    )


def clip_config(settings: ModelSettings, *, logit_bias: bool = False) -> CLIPConfig:
    """Return the architecture of a recipe's model.

    Args:
        logit_bias: the model has a bias, also if its preset has none.

    Raises:
        ConfigError: an unknown preset, or ``normalize_map`` with one whose image tower has none.
    """
    config = choose(PRESETS, settings.preset, "preset")
    if settings.normalize_map:
        require_dense(config)
    return dataclasses.replace(
        config,
        normalize_map=settings.normalize_map,
        logit_bias=logit_bias or config.logit_bias,
    )


def build_model(
    settings: TrainedModelSettings, *, frozen_norm: bool, logit_bias: bool = False
) -> CLIP:
    """Build a trained model; ``logit_bias`` as in ``clip_config``."""
    return CLIP(
        clip_config(settings, logit_bias=logit_bias),
        frozen_norm,
        compute_dtype(settings.dtype),
        settings.remat,
    )


def build_teacher(settings: ModelSettings) -> CLIP:
    return CLIP(clip_config(settings), dtype=compute_dtype(settings.dtype))


def tokenizer_source(settings: ModelSettings) -> TokenizerSource:
    """Return the tokenizer of a model; the vocabulary that it may read is that of ``init_from``.

    Raises:
        CheckpointMismatch: ``init_from`` lacks the vocabulary.
        ConfigError: there is no ``init_from`` for a preset whose tokenizer reads a vocabulary.
    """
    text = clip_config(settings).text
    if not needs_file(text.tokenizer):
        return TokenizerSource(text.tokenizer)
    if not settings.init_from:
        raise ConfigError(
            f"init_from: the preset {settings.preset!r} reads texts with the vocabulary of a "
            "converted model; give the directory of one"
        )
    return tokenizer_of(settings.init_from, text)


def require_caption_length(data: CaptionDataSettings, text: TextTowerConfig) -> None:
    """Refuse captions that the text tower cannot read as they are cut and padded.

    Raises:
        ConfigError: more tokens than the tower has positions, or fewer for one that reads padding.
    """
    length, longest = data.context_length, text.context_length
    reads_padding = text.num_read(np.zeros((1, longest), np.int32)) == longest
    if length > longest or (reads_padding and length < longest):
        raise ConfigError(
            f"data.context_length: {length} tokens of a caption, expected "
            f"{'exactly' if reads_padding else 'at most'} the {longest} of the text tower; set it "
            f"to {longest}"
        )


def initial_variables(settings: ModelSettings, seed: int, *, logit_bias: bool = False) -> dict:
    """Return the initial variables of a model: those of ``init_from``, or random ones.

    Args:
        logit_bias: as in ``clip_config``.

    Raises:
        CheckpointMismatch: ``init_from`` holds another architecture than ``preset``.
    """
    config = clip_config(settings, logit_bias=logit_bias)
    if not settings.init_from:
        logging.warning("%s: no init_from, starts from random weights", settings.preset)
        return draw_parameters(init_variables, config, jax.random.key(seed))
    variables, card = load_model(settings.init_from)
    if card.architecture.normalize_map != config.normalize_map:
        logging.warning(
            "%s: normalize_map is %s there and %s in this recipe, so regions have other embeddings",
            settings.init_from,
            card.architecture.normalize_map,
            config.normalize_map,
        )
    found = card.architecture
    if not clip_config(settings).logit_bias:
        # A preset without a bias leaves it to the training whether the model has one.
        found = dataclasses.replace(found, logit_bias=config.logit_bias)
        variables = variables | {"params": _with_bias_of(config, variables["params"], settings)}
    if _with_rules_of(config, found) != config:
        raise CheckpointMismatch(
            f"{settings.init_from}: holds {card.label}, the recipe wants "
            f"preset {settings.preset!r}; choose the recipe of that architecture or another file"
        )
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return merge_parameters(shapes, variables, settings.init_from)


def _with_bias_of(config: CLIPConfig, params: dict, settings: ModelSettings) -> dict:
    """Return parameters with a bias, or without one, as the architecture has it."""
    has_bias = "logit_bias" in params
    if config.logit_bias and not has_bias:
        logging.info(
            "%s: has no logit bias, starts with scale %g and bias %g",
            settings.init_from,
            SIGMOID_SCALE,
            SIGMOID_BIAS,
        )
        return with_initial_bias(params)
    if has_bias and not config.logit_bias:
        logging.warning(
            "%s: has a logit bias, which this training does not use; the model that it writes has "
            "none",
            settings.init_from,
        )
        return {name: value for name, value in params.items() if name != "logit_bias"}
    return params


def _with_rules_of(wanted: CLIPConfig, found: CLIPConfig) -> CLIPConfig:
    """Return ``found`` with the rules of ``wanted`` for other sizes and for regions.

    The weights do not depend on these rules. A model that is trained here has those of its recipe.
    """
    preprocessing = dataclasses.replace(found.preprocessing, resize=wanted.preprocessing.resize)
    found = dataclasses.replace(
        found, preprocessing=preprocessing, normalize_map=wanted.normalize_map
    )
    if isinstance(found.image, PatchTowerConfig) and isinstance(wanted.image, PatchTowerConfig):
        rule = wanted.image.position_resize
        image = dataclasses.replace(found.image, position_resize=rule)
        found = dataclasses.replace(found, image=image)
    return found


def cast_matrices(variables: Tree, dtype: jnp.dtype) -> Tree:
    """Return frozen variables with matrices and kernels in the type of the computation.

    Frozen variables need no float32 copy, which would waste memory. Vectors, such as the statistics
    of norms, keep their type.
    """
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, variables)


def without_text_tower(variables: dict, dtype: jnp.dtype) -> dict:
    """Return a frozen CLIP's variables without its text tower, cast by ``cast_matrices``."""
    return cast_matrices(
        {
            name: {branch: part for branch, part in tree.items() if branch != "text"}
            for name, tree in variables.items()
        },
        dtype,
    )


def require_dense(clip: CLIPConfig) -> None:
    """Refuse a model whose cells of the map are not embeddings.

    Raises:
        ConfigError: the image tower is not a ``DenseImageTower``.
    """
    kind, dense = kind_of(clip.image, IMAGE_TOWERS), dense_kinds()
    if kind not in dense:
        raise ConfigError(
            f"model.preset: an image tower of the family {kind!r} has no embedding of each cell of "
            f"its map, expected one of {dense}; choose a preset of these, such as 'ViT-B/16'"
        )


def require_detector_fits(settings: DetectorObjective, clip: CLIPConfig) -> None:
    """Refuse an objective that the model does not support.

    Raises:
        ConfigError: masks without maps of regions, or a random image tower without batch norms.
    """
    lacks_maps = settings.with_masks and clip.image.crop_channels is None
    lacks_maps = lacks_maps and not settings.pyramid_blocks
    lacks_norms = settings.image_tower == "random" and not clip.image.has_batch_norms
    if lacks_maps or lacks_norms:
        kind = kind_of(clip.image, IMAGE_TOWERS)
        raise ConfigError(
            f"model.preset: an image tower of the family {kind!r} has neither maps of regions for "
            "masks nor batch norms for a random image tower; choose a ResNet, or "
            "detector.mask_size None and image_tower 'pretrained'"
        )


def heads_config(settings: DetectorObjective, clip: CLIPConfig) -> HeadsConfig:
    """Return the sizes of the heads of a detector.

    Raises:
        ConfigError: a pyramid on a tower without maps of blocks, or with fewer blocks.
    """
    blocks = settings.pyramid_blocks
    if not blocks:
        channels = clip.image.crop_channels if settings.with_masks else None
        return HeadsConfig(clip.embed_dim, channels)
    kind, layers = kind_of(clip.image, IMAGE_TOWERS), num_blocks(clip.image)
    if max(blocks) >= layers:
        raise ConfigError(
            f"detector.pyramid_blocks: {blocks} with an image tower of the family {kind!r}, which "
            f"has {layers} blocks with maps; expected smaller numbers, or a family of "
            f"{block_kinds()}"
        )
    pyramid = PyramidConfig(typing.cast(Any, blocks), typing.cast(Any, clip.image).width)
    return HeadsConfig(clip.embed_dim, pyramid.channels if settings.with_masks else None, pyramid)


def with_own_scores(settings: EvaluationSettings, own: ScoreSettings) -> EvaluationSettings:
    """Return an evaluation whose keys that are None have the model's own values.

    Only a localizer's proposals have objectness. Temperature and bias of a sigmoid were learned
    together. So an evaluation that leaves the activation to the model has its temperature too, even
    if it states another one, which is meant for a softmax.
    """
    stated = settings.detection
    if stated.score_activation is None and own.detection.score_activation == "sigmoid":
        if stated.temperature not in (None, own.detection.temperature):
            logging.info(
                "detection.temperature: %g is for a softmax; without score_activation this model "
                "has sigmoids at its own %g",
                stated.temperature,
                own.detection.temperature,
            )
        stated = dataclasses.replace(stated, temperature=None)
    detection = completed(stated, own.detection)
    if settings.regions != "localizer":
        detection = dataclasses.replace(detection, objectness="none")
    proposals = completed(settings.proposals, own.proposals)
    return dataclasses.replace(settings, proposals=proposals, detection=detection)


def build_find_regions(settings: EvaluationSettings, localizer: Localizer | None) -> FindRegions:
    """Return the source of a model's regions; only "localizer" uses ``localizer``."""
    if settings.regions == "ground_truth":
        return given_boxes
    if settings.regions == "windows":
        return windows(settings.window_sides)
    return proposals_of(localizer, settings.proposals)
