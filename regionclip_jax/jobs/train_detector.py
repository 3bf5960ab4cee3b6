"""Training an open-vocabulary detector on base classes, and testing it on novel ones too."""

from pathlib import Path

import jax
import optax
from absl import logging

from regionclip_jax.artifacts.detector_heads import HeadsCard, HeadsConfig, init_heads, save_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_localizer
from regionclip_jax.artifacts.model_card import LocalizerCard, ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model, variables_hash
from regionclip_jax.artifacts.vocabulary import (
    Vocabulary,
    describe_encoder,
    require_matching,
    text_tower_hash,
)
from regionclip_jax.jobs import assembly, concept_pool, detection_data, evaluate, training_run
from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.settings import ConfigError, EvaluateSettings, TrainDetectorSettings
from regionclip_jax.steps.detector_step import (
    BOX_HEAD,
    MASK_HEAD,
    FrozenDetectorParts,
    clip_part,
    make_detector_step,
)
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.text.prompts import prepare_class_name
from regionclip_jax.training.initialization import draw_parameters


def run(settings: TrainDetectorSettings, workdir: Path) -> Path:
    """Trains, evaluates if the recipe names pictures for it, and returns the detector's directory.

    The directory is whole: CLIP with the trained image tower, the heads, a copy of the localizer.
    """
    detector = settings.detector
    architecture = assembly.architecture(settings.model)
    assembly.require_detector_fits(detector, architecture)
    pretrained = detector.image_tower == "pretrained"
    training_set = detection_data.build_training_set(settings.data, detector.mask_size)
    localizer_variables, localizer_card = load_localizer(
        detector.localizer or settings.model.init_from
    )
    model = assembly.build_model(settings.model, frozen_norm=pretrained)
    assembly.log_dtype("model and localizer", settings.model.dtype)
    localizer = Localizer(localizer_card.architecture, model.dtype)
    start = assembly.initial_variables(settings.model, settings.run.seed)
    optimizer = assembly.build_optimizer(settings.optimizer, settings.run.num_steps)
    heads = HeadsConfig(
        architecture.embed_dim,
        architecture.vision_width * 32 if detector.with_masks else None,
    )
    names = tuple(prepare_class_name(name) for name in training_set.category_names)

    def make_frozen() -> FrozenDetectorParts:
        vocabulary = _class_embeddings(settings, names, model, start, workdir)
        return FrozenDetectorParts(
            assembly.in_type(localizer_variables, model.dtype), vocabulary.embeddings
        )

    def export(directory: Path, variables: dict, source: dict) -> None:
        save_model(directory, clip_part(variables), ModelCard(architecture, source))
        card = LocalizerCard(localizer_card.architecture, localizer_card.source)
        save_localizer(directory, localizer_variables, card)
        parts = {k: v for k, v in variables["params"].items() if k in (BOX_HEAD, MASK_HEAD)}
        save_heads(directory, parts, HeadsCard(heads, {**source, "classes": list(names)}))

    directory = training_run.train(
        workdir,
        settings,
        contents={
            "records": len(training_set),
            "classes": names,
            "text_tower": text_tower_hash(start["params"]),
            "localizer": variables_hash(localizer_variables),
        },
        export=export,
        make_variables=lambda: _start_variables(settings, start, heads, pretrained),
        make_state=lambda variables: _build_state(settings, variables, optimizer),
        make_step=lambda: make_detector_step(
            model, localizer, optimizer, detector, seed=settings.run.seed
        ),
        make_frozen=make_frozen,
        stream=lambda first: detection_data.stream(
            settings.data,
            training_set,
            batch_size=settings.run.batch_size,
            seed=settings.run.seed,
            start_record=first,
        ),
    )
    if settings.evaluation.path:
        evaluate.run(
            EvaluateSettings(
                matmul_precision=settings.matmul_precision,
                models={"detector": str(directory)},
                dtype=settings.model.dtype,
                evaluation=settings.evaluation,
            ),
            workdir,
        )
    return directory


def _start_variables(
    settings: TrainDetectorSettings, start: dict, heads: HeadsConfig, pretrained: bool
) -> dict:
    """CLIP's variables, and the heads' parameters beside them."""
    tower_key, heads_key = jax.random.split(jax.random.key(settings.run.seed))
    variables = start
    if not pretrained:
        logging.info("the image tower starts from random weights, with live batch norms")
        fresh = draw_parameters(init_variables, assembly.architecture(settings.model), tower_key)
        variables = {
            "params": start["params"] | {"visual": fresh["params"]["visual"]},
            "batch_stats": fresh["batch_stats"],
        }
    params = variables["params"] | draw_parameters(init_heads, heads, heads_key)
    return {"params": params, "batch_stats": variables["batch_stats"]}


def _build_state(
    settings: TrainDetectorSettings, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state at step 0.

    Raises:
        ConfigError: the text tower would be trained, and leave the class embeddings behind.
    """
    state = assembly.build_state(settings.optimizer, variables, optimizer)
    if "text" in state.params:
        raise ConfigError(
            f"optimizer.frozen_patterns: {list(settings.optimizer.frozen_patterns)} leave "
            "parameters of the text tower to train, but the classes are embedded by it once; add "
            "'^text/'"
        )
    return state


def _class_embeddings(
    settings: TrainDetectorSettings, names: tuple[str, ...], model: CLIP, start: dict, workdir: Path
) -> Vocabulary:
    """Embeddings of the trained classes, in their order.

    Raises:
        ConfigError: a vocabulary of other names, or of the same in another order.
    """
    detector = settings.detector
    if not detector.vocabulary:
        return concept_pool.cached_vocabulary(
            workdir / "vocabulary.npz", model, start, names, detector.templates
        )
    given = Vocabulary.load(detector.vocabulary)
    require_matching(given, describe_encoder(model.config, start["params"]))
    if given.names != names:
        where = next(
            (i for i, pair in enumerate(zip(given.names, names, strict=False)) if len({*pair}) > 1),
            min(len(given.names), len(names)),
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
