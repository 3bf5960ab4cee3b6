"""Train an open-vocabulary detector on base classes, and test it also on novel ones."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from regionclip_jax.artifacts.detector_heads import (
    HeadsCard,
    HeadsConfig,
    init_heads,
    pyramid_heads,
    save_heads,
)
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    save_model,
    variables_hash,
)
from regionclip_jax.artifacts.vocabulary import FILE_NAME as VOCABULARY_NAME
from regionclip_jax.artifacts.vocabulary import (
    Vocabulary,
    describe_encoder,
    require_matching,
    text_tower_hash,
)
from regionclip_jax.assembly import concept_pool, detection_data, training_run
from regionclip_jax.assembly.models import (
    build_model,
    cast_matrices,
    clip_config,
    heads_config,
    initial_variables,
    log_dtype,
    require_detector_fits,
    tokenizer_source,
)
from regionclip_jax.assembly.optimization import build_optimizer, build_state_beside_text
from regionclip_jax.assembly.training import (
    Assumed,
    Materials,
    Training,
    abstract_frozen_localizer,
    array,
    localizer_architecture,
)
from regionclip_jax.data.sources.fingerprint import content_facts
from regionclip_jax.jobs import evaluate
from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.localizer import Localizer, LocalizerConfig
from regionclip_jax.models.vit_pyramid import PYRAMID_HEADS
from regionclip_jax.settings import (
    ConfigError,
    EvaluateSettings,
    ScoreSettings,
    TrainDetectorSettings,
)
from regionclip_jax.steps.detector_step import (
    FrozenDetectorParts,
    clip_part,
    heads_part,
    make_detector_step,
)
from regionclip_jax.steps.pyramid_step import make_pyramid_step
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.text.names import tokenized_text
from regionclip_jax.text.prompts import prepare_class_name
from regionclip_jax.training.initialization import draw_parameters

# The text of the background's embedding in the softmax of a detector on a pyramid.
_BACKGROUND = "background"


def run(settings: TrainDetectorSettings, workdir: Path) -> Path:
    """Train, evaluate if the recipe has images for it, and return the detector's directory.

    The directory is complete: CLIP with the trained image tower, the heads, the localizer unless
    the heads have a pyramid, the embeddings of the trained classes, and the settings of scores.
    """
    log_dtype("model and localizer", settings.model.dtype)
    if settings.evaluation.path:
        evaluate.check(settings.evaluation)
    directory = training_run.run(build(settings), workdir)
    if settings.evaluation.path:
        evaluate.run(
            EvaluateSettings(
                matmul_precision=settings.matmul_precision,
                tracker=settings.tracker,
                models={"detector": str(directory)},
                dtype=settings.model.dtype,
                evaluation=settings.evaluation,
            ),
            workdir,
        )
    return directory


def build(settings: TrainDetectorSettings, assumed: Assumed | None = None) -> Training:
    """Describe the training.

    Args:
        assumed: replaces the localizer and the classes of the data if only shapes are needed.

    Raises:
        ConfigError: the model does not support the objective, or there is no localizer.
    """
    detector, clip = settings.detector, clip_config(settings.model)
    require_detector_fits(detector, clip)
    architecture = _localizer(settings, assumed)
    model = build_model(settings.model, frozen_norm=detector.image_tower == "pretrained")
    optimizer = build_optimizer(settings.optimizer, settings.run.num_steps)
    heads = heads_config(detector, clip)
    pyramid = pyramid_heads(heads, frozen_norm=False, dtype=model.dtype)

    def make_step(mesh):
        seed = settings.run.seed
        if pyramid is not None:
            return make_pyramid_step(model, pyramid, optimizer, detector, seed=seed)
        localizer = Localizer(architecture, model.dtype)
        return make_detector_step(model, localizer, optimizer, detector, seed=seed)

    def shapes() -> dict:
        added = jax.eval_shape(lambda: init_heads(heads, jax.random.key(0)))
        return _joined(abstract_variables(clip), added)

    def initial_state(variables: dict) -> TrainState:
        state = build_state_beside_text(settings.optimizer, variables, optimizer)
        if pyramid is not None and "visual" in state.params:
            raise ConfigError(
                f"optimizer.frozen_patterns: {list(settings.optimizer.frozen_patterns)} leave "
                "parameters of the image tower to train, but a pyramid stands on a frozen tower; "
                "add '^visual/'"
            )
        return state

    return Training(
        settings=settings,
        dtype=jnp.dtype(model.dtype),
        make_step=make_step,
        initial_state=initial_state,
        abstract_variables=shapes,
        abstract_frozen=lambda: FrozenDetectorParts(
            abstract_frozen_localizer(architecture, model.dtype),
            array((assumed or Assumed()).num_names, clip.embed_dim),
        ),
        open=lambda: _open(settings, model, heads),
    )


def _localizer_directory(settings: TrainDetectorSettings) -> str:
    return settings.detector.localizer or settings.model.init_from


def _localizer(settings: TrainDetectorSettings, assumed: Assumed | None) -> LocalizerConfig | None:
    """Return the architecture of the localizer; None for a pyramid, which proposes itself.

    Raises:
        ConfigError: there is no localizer.
    """
    if settings.detector.pyramid_blocks:
        return None
    architecture = localizer_architecture(_localizer_directory(settings), assumed)
    if architecture is None:
        raise ConfigError(
            "detector.localizer: a detector needs a localizer; name a model directory that has "
            "one, or a preset with --localizer where a recipe is only compiled"
        )
    return architecture


def _joined(clip: dict, heads: dict) -> dict:
    """Return the variables of CLIP and heads as one tree."""
    return {name: clip[name] | heads[name] for name in ("params", "batch_stats")}


def _open(settings: TrainDetectorSettings, model: CLIP, heads: HeadsConfig) -> Materials:
    training_set = detection_data.build_training_set(settings.data, settings.detector.mask_size)
    localizer = localizer_card = None
    if heads.pyramid is None:
        localizer, localizer_card = load_localizer(_localizer_directory(settings))
    start = initial_variables(settings.model, settings.run.seed)
    names = tuple(prepare_class_name(name) for name in training_set.category_names)

    def vocabulary(workdir: Path) -> Vocabulary:
        return _class_embeddings(settings, names, model, start, workdir)

    def frozen(workdir: Path) -> FrozenDetectorParts:
        embeddings = vocabulary(workdir).embeddings
        return FrozenDetectorParts(cast_matrices(localizer, model.dtype), embeddings)

    def export(directory: Path, variables: dict, source: dict) -> None:
        if localizer_card is not None:
            save_localizer(directory, localizer, localizer_card)
        card = HeadsCard(heads, {**source, "classes": list(names)})
        save_heads(directory, heads_part(variables), card)
        concept_pool.export(vocabulary(directory.parent), directory)
        card = ModelCard(model.config, source, scores=_exported_scores(settings))
        save_model(directory, clip_part(variables), card, tokenizer_source(settings.model))

    return Materials(
        contents={
            **content_facts(training_set),
            "classes": names,
            "text_tower": text_tower_hash(start["params"]),
            **({} if localizer is None else {"localizer": variables_hash(localizer)}),
        },
        variables=lambda: _start_variables(settings, start, heads, model),
        frozen=frozen,
        batches=lambda first: detection_data.stream(
            settings.data,
            training_set,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=first,
        ),
        export=export,
    )


def _exported_scores(settings: TrainDetectorSettings) -> ScoreSettings:
    """Return the detector's settings; users see probabilities, not the reference's product."""
    scores = settings.scores
    if scores.detection.objectness != "reference":
        return scores
    detection = dataclasses.replace(scores.detection, objectness="sigmoid")
    return dataclasses.replace(scores, detection=detection)


def _start_variables(
    settings: TrainDetectorSettings, start: dict, heads: HeadsConfig, model: CLIP
) -> dict:
    """Return CLIP's variables with the heads' variables."""
    tower_key, heads_key = jax.random.split(jax.random.key(settings.run.seed))
    variables = start
    if settings.detector.image_tower == "random":
        logging.info("the image tower starts from random weights, with live batch norms")
        fresh = draw_parameters(init_variables, clip_config(settings.model), tower_key)
        variables = {
            "params": start["params"] | {"visual": fresh["params"]["visual"]},
            "batch_stats": fresh["batch_stats"],
        }
    added = draw_parameters(init_heads, heads, heads_key)
    if heads.pyramid is not None:
        detector = settings.detector
        background = concept_pool.embed_names(
            model, start, (_BACKGROUND,), detector.templates, tokenizer_source(settings.model)
        )
        added["params"][PYRAMID_HEADS] |= {
            "background_embedding": jnp.asarray(background.embeddings[0]),
            "logit_factor": jnp.asarray(1 / detector.temperature, jnp.float32),
        }
    return _joined(variables, added)


def _class_embeddings(
    settings: TrainDetectorSettings, names: tuple[str, ...], model: CLIP, start: dict, workdir: Path
) -> Vocabulary:
    """Return the embeddings of the trained classes in order.

    Raises:
        ConfigError: a vocabulary with other names or another order.
    """
    detector = settings.detector
    if not detector.vocabulary:
        return concept_pool.cached_vocabulary(
            workdir / VOCABULARY_NAME, model, start, names, detector.templates,
            tokenizer_source(settings.model),
        )  # fmt: skip
    given = Vocabulary.load(detector.vocabulary)
    require_matching(given, describe_encoder(model.config, start["params"]))
    there, here = ([tokenized_text(name) for name in some] for some in (given.names, names))
    if there != here:
        where = next(
            (i for i, pair in enumerate(zip(there, here, strict=False)) if len({*pair}) > 1),
            min(len(there), len(here)),
        )
        found, expected = (
            repr(some[where]) if where < len(some) else "nothing" for some in (given.names, names)
        )
        raise ConfigError(
            f"detector.vocabulary: {detector.vocabulary} has {len(given.names)} names, the "
            f"training data {len(names)} classes; at row {where}: {found} there, {expected} in the "
            "data; give the embeddings of these classes in this order, or leave it empty to embed "
            "them"
        )
    return given
