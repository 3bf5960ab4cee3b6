"""Recipes of the campaigns' trainings, on data that ``trainings.Trainings`` writes."""

import ml_collections

from regionclip_jax.data.scenes.dataset import SceneImages
from regionclip_jax.recipes import defaults
from regionclip_jax.settings import (
    PretrainSettings,
    TrainDetectorSettings,
    TrainLocalizerSettings,
)

PRESET = "campaign"
NUM_STEPS = 8
SIDE = 64  # of the images
SCENES = SceneImages(0, 0, SIDE, (1, 3), (0.3, 0.5), overlap=0.2, typicality=0.8, clutter=1)


def _update_common(config, folder: str, data: str) -> None:
    config.matmul_precision = "highest"
    config.optimizer.update(
        learning_rate=1e-3, boundaries=(100,), warmup_factor=1.0, warmup_steps=0, weight_decay=0.0
    )
    config.run.update(
        num_steps=NUM_STEPS,
        batch_size=4,
        log_every=1,
        checkpoint_every=2,
        checkpoints_to_keep=3,
    )
    config.data.update(
        source="array_record",
        path=f"{folder}/{data}",
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((SIDE, SIDE),),
        group_by_canvas=False,
        num_threads=1,
    )


def _pretrain(folder: str) -> ml_collections.ConfigDict:
    config = defaults(PretrainSettings)
    _update_common(config, folder, "pairs")
    config.data.context_length = 24
    for model in (config.student, config.teacher):
        model.update(preset=PRESET, init_from=f"{folder}/start", dtype="float32")
    config.concepts.update(names_file=f"{folder}/concepts.txt", templates="plain")
    config.regions.update(
        num_regions=3,
        temperature=0.1,
        teacher_temperature=0.1,
        images_per_group=4,
        regions_per_softmax=2,
        regions_per_chunk=None,
    )
    config.regions.proposals.update(num_proposals=6, pre_nms_topk=50, nms_threshold=0.7)
    return config


def _evaluated(config, folder: str) -> None:
    config.evaluation.update(
        source="array_record",
        path=f"{folder}/boxes",
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((SIDE, SIDE),),
        batch_size=8,
        max_boxes=3,
        num_threads=1,
    )
    config.evaluation.proposals.update(num_proposals=20, pre_nms_topk=100)
    config.data.update(classes="scenes_base", max_boxes=3, repeat_threshold=0.3)


def _localizer(folder: str) -> ml_collections.ConfigDict:
    config = defaults(TrainLocalizerSettings)
    _update_common(config, folder, "boxes")
    _evaluated(config, folder)
    config.localizer.update(preset=PRESET, init_from=f"{folder}/start", dtype="float32")
    config.optimizer.frozen_patterns = ("norm",)
    config.anchors.anchors_per_image = 16
    return config


def _detector(folder: str) -> ml_collections.ConfigDict:
    config = defaults(TrainDetectorSettings)
    _update_common(config, folder, "boxes")
    _evaluated(config, folder)
    config.model.update(preset=PRESET, init_from=f"{folder}/start", dtype="float32")
    config.detector.update(
        localizer=f"{folder}/whole-localizer/model",
        samples_per_image=8,
        temperature=0.1,
        templates="plain",
        regions_per_chunk=4,
    )
    config.detector.proposals.update(num_proposals=20, pre_nms_topk=50, nms_threshold=0.7)
    config.optimizer.frozen_patterns = ("norm", "^text/", "^logit_scale")
    config.evaluation.update(regions="localizer", templates="plain")
    return config


RECIPES = {"pretrain": _pretrain, "localizer": _localizer, "detector": _detector}
