"""Region-text pretraining.

  --config=configs/pretrain.py               the synthetic experiment
  --config=configs/pretrain.py:scenes_detection  the same, continued to trained detectors
  --config=configs/pretrain.py:scenes_vit    CLIP, RegionCLIP, CLIPSelf and both of a small ViT
  --config=configs/pretrain.py:rn50_coco     the paper's RN50 on a COCO folder
  --config=configs/pretrain.py:rn50_cc3m     the paper's RN50 on CC3M as TSV pairs
  --config=configs/pretrain.py:rn50x4_cc3m   the paper's RN50x4
  --config=configs/pretrain.py:vitb16_coco   ViT-B/16 on a COCO folder
  --config=configs/pretrain.py:eva02_b16_coco    EVA-02-CLIP B/16, the same
  --config=configs/pretrain.py:siglip2_b16_coco  SigLIP 2 B/16 with sigmoid losses, the same

Teacher and student may be of different families: give each its preset and init_from. The recipes of
the paper are what the reference's pretrain.sh and its yaml files set
(docs/reference/configuration.md#pretraining-keys). A recipe
states what differs from the defaults of regionclip_jax/settings; --describe prints all keys with
their meanings.
"""

import ml_collections

from regionclip_jax.recipes import defaults
from regionclip_jax.settings import (
    PretrainSettings,
    ScenesDetectionSettings,
    ScenesExperimentSettings,
    ScenesViTSettings,
)


def rn50_coco() -> ml_collections.ConfigDict:
    config = defaults(PretrainSettings)
    # Model directories from scripts/convert_checkpoint.py.
    config.student.init_from = "checkpoints/clip_rn50"
    config.teacher.init_from = "checkpoints/clip_rn50"
    config.data.update(path="data/coco", split="train2017")
    config.concepts.names_file = "data/concepts.txt"
    return config


def rn50_cc3m() -> ml_collections.ConfigDict:
    config = rn50_coco()
    config.data.update(source="tsv_pairs", path="data/cc3m", split="")
    return config


def rn50x4_cc3m() -> ml_collections.ConfigDict:
    config = rn50_cc3m()
    for model in (config.student, config.teacher):
        model.update(preset="RN50x4", init_from="checkpoints/clip_rn50x4")
    return config


def _patches_on_coco(preset: str, init_from: str, *frozen: str) -> ml_collections.ConfigDict:
    """Pretraining of a tower of 12 blocks on patches of 16 pixels, with its frozen first parts."""
    config = rn50_coco()
    for model in (config.student, config.teacher):
        model.update(preset=preset, init_from=init_from)
    config.optimizer.update(
        kind="adamw",
        learning_rate=1e-5,
        weight_decay=0.1,
        no_decay_patterns=("bias$", "ln_"),
        # The first half of the blocks, as the ResNet recipe freezes its first stages.
        frozen_patterns=(
            *(f"visual/{part}" for part in frozen),
            "visual/blocks/block[0-5]/",
            "^text/",
        ),
    )
    # Self-attention over an 800 x 1344 canvas would have 4,200 patches, not the 196 of the grid.
    # Canvases are multiples of the patch. As for the ResNet, 8.4% of the pixels are padding.
    config.data.update(
        short_sides=(448,),
        max_long_side=746,
        canvas_sizes=((448, 608), (608, 448), (448, 752), (752, 448), (752, 752)),
        flip_directional_captions=False,
    )
    return config


def vitb16_coco() -> ml_collections.ConfigDict:
    """Not a recipe of the paper: its reference never got its ViT branch to work."""
    parts = ("patch_embedding", "class_embedding", "positional_embedding", "ln_pre")
    config = _patches_on_coco("ViT-B/16", "checkpoints/clip_vitb16", *parts)
    config.optimizer.frozen_patterns += ("^logit_scale",)
    return config


def eva02_b16_coco() -> ml_collections.ConfigDict:
    """The losses of the paper on the backbone of CLIPSelf; not a published recipe."""
    parts = ("patch_embedding", "class_embedding", "positional_embedding")
    config = _patches_on_coco("EVA02-B-16", "checkpoints/eva02_b16", *parts)
    # As the converted weights.
    config.student.normalize_map = config.teacher.normalize_map = True
    config.optimizer.frozen_patterns += ("^logit_scale",)
    return config


def siglip2_b16_coco() -> ml_collections.ConfigDict:
    """Both contrastive losses are SigLIP's sigmoid; not a published recipe.

    The positions of the weights for 512 pixels are nearest to these canvases.
    """
    parts = ("patch_embedding", "positional_embedding")
    config = _patches_on_coco("ViT-B-16-SigLIP2-512", "checkpoints/siglip2_b16_512", *parts)
    # Scale and bias are trained.
    config.optimizer.no_decay_patterns += ("^logit_", "probe$")
    config.data.context_length = 64
    config.regions.update(region_activation="sigmoid", image_text_activation="sigmoid")
    return config


# The small CLIP learns a temperature near this one; CLIP learned 0.01.
_SCENES_TEMPERATURE = 0.07
# Objects overlap by a fifth at most: proposals that overlap by half are of one object.
_SCENES_PROPOSALS = dict(
    num_proposals=50, pre_nms_topk=200, nms_threshold=0.5, voting_threshold=0.4
)


def _small_clip(config: ml_collections.ConfigDict) -> None:
    """Whole-image training of a CLIP that learns in minutes on two CPU cores."""
    config.model.preset = "scenes"
    _scenes_captions(config.data)
    # Objects of the close-ups become about as large as those of the scenes are in the student's
    # images, and steps are faster.
    config.data.update(canvas_sizes=((64, 64),), short_sides=(64,), max_long_side=64)
    _scenes_training(config)
    config.optimizer.update(
        learning_rate=2e-3,
        warmup_steps=200,
        weight_decay=0.05,
        no_decay_patterns=("bias$", "scale$"),
        frozen_patterns=(),
    )
    config.run.update(num_steps=1400, log_every=100, checkpoint_every=300)


def _small_pretraining(config: ml_collections.ConfigDict) -> None:
    config.student.preset = config.teacher.preset = "scenes"
    _scenes_captions(config.data)
    _scenes_training(config)
    config.concepts.templates = "plain"
    config.regions.update(
        num_regions=12,
        # About as large as the objects: most of the reference's boxes contain none or several.
        box_sides=(0.25, 0.6),
        temperature=_SCENES_TEMPERATURE,
        teacher_temperature=_SCENES_TEMPERATURE,
        concept_threshold=0.5,
        images_per_group=None,
        regions_per_chunk=None,
    )
    config.regions.proposals.update(num_proposals=64, voting_threshold=0.4)


def _scenes_captions(data: ml_collections.ConfigDict) -> None:
    _scenes_images(data)
    data.update(flip_directional_captions=False, context_length=32)


def _scenes_images(data: ml_collections.ConfigDict) -> None:
    data.update(
        source="array_record",
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((96, 96),),
        group_by_canvas=False,
        # Left and right differ in the scenes; mirrored images would double the number of patterns.
        flip_probability=0.0,
        num_threads=2,
        max_skipped_fraction=0.01,
        min_skipped_records=10,
    )


def _scenes_training(config: ml_collections.ConfigDict) -> None:
    config.optimizer.update(
        kind="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        boundaries=(),
        warmup_steps=20,
        weight_decay=0.01,
        clip_per_tensor_norm=None,
        no_decay_patterns=("bias$",),
        frozen_patterns=("norm", "^text/", "^logit_scale"),
    )
    config.run.update(
        num_steps=400, batch_size=32, log_every=50, checkpoint_every=100, checkpoints_to_keep=2
    )


def _scenes_evaluation(evaluation: ml_collections.ConfigDict) -> None:
    evaluation.update(
        source="array_record",
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((96, 96),),
        batch_size=32,
        max_boxes=4,
        num_threads=2,
        max_skipped_fraction=0.01,
    )


def _scenes_recognition(evaluation: ml_collections.ConfigDict) -> None:
    evaluation.templates = "plain"
    # Every given box is named, and suppresses no other.
    evaluation.detection.update(
        temperature=_SCENES_TEMPERATURE, score_threshold=0.0, regions_per_chunk=None
    )
    evaluation.detection.nms.threshold = 1.0


def _small_localizer(config: ml_collections.ConfigDict) -> None:
    # The small CLIP's trunk, with a pyramid.
    config.localizer.preset = "scenes"
    _scenes_images(config.data)
    config.data.update(classes="scenes_base", max_boxes=4)
    config.anchors.anchors_per_image = 64
    _scenes_training(config)
    config.optimizer.update(learning_rate=2e-3, frozen_patterns=("norm",))
    _scenes_evaluation(config.evaluation)
    config.evaluation.proposals.update(num_proposals=50, pre_nms_topk=200)


def scenes() -> ml_collections.ConfigDict:
    """The synthetic experiment: nine to ten minutes on 2 CPU cores, no download."""
    config = defaults(ScenesExperimentSettings)
    _small_clip(config.train_clip)
    config.train_clip.run.num_steps = 1700
    _small_localizer(config.train_localizer)
    config.train_localizer.run.num_steps = 220
    _small_pretraining(config.pretrain)
    config.pretrain.regions.proposals.update(num_proposals=30, pre_nms_topk=200)
    config.pretrain.run.num_steps = 300
    _scenes_evaluation(config.evaluation)
    _scenes_evaluation(config.zero_shot)
    config.zero_shot.update(regions="localizer", templates="plain")
    config.zero_shot.proposals.update(_SCENES_PROPOSALS)
    config.zero_shot.detection.update(
        temperature=_SCENES_TEMPERATURE, objectness="sigmoid", regions_per_chunk=None
    )
    # Objects overlap by a fifth at most, and boxes of a part and of its whole by more.
    config.zero_shot.detection.nms.threshold = 0.3
    _scenes_recognition(config.evaluation)
    return config


def scenes_vit() -> ml_collections.ConfigDict:
    """RegionCLIP, CLIPSelf and both from the same small CLIP, a ViT, for three seeds."""
    config = defaults(ScenesViTSettings)
    _small_clip(config.train_clip)
    config.train_clip.optimizer.learning_rate = 1e-3
    config.train_clip.run.num_steps = 1500

    _small_pretraining(config.pretrain)
    config.pretrain.run.num_steps = 120
    config.pretrain.optimizer.frozen_patterns = ("^text/", "^logit_scale")

    distill = config.distill
    _scenes_images(distill.data)
    # Most objects are as large as a cell of these grids.
    distill.regions.update(max_split=3, boxes_per_image=6)
    distill.student_share = 1.0
    _scenes_training(distill)
    distill.run.num_steps = 200
    distill.optimizer.frozen_patterns = (
        "^text/", "^logit_", "^visual/(?!blocks/)", "/block2/attention/[qk]_proj/",
    )  # fmt: skip

    for model in (config.train_clip.model, config.pretrain.student, config.pretrain.teacher):
        # One way to pool a region for all, that of CLIPSelf, so that only the weights differ.
        model.update(preset="scenes_vit", normalize_map=True)
    distill.model.preset = "scenes_vit"
    _scenes_evaluation(config.evaluation)
    _scenes_recognition(config.evaluation)
    return config


def scenes_detection() -> ml_collections.ConfigDict:
    """Localizer, RegionCLIP on its regions, detectors from three starts: 9 to 10 minutes."""
    config = defaults(ScenesDetectionSettings)
    # Fewer images and steps than in the single jobs, to stay under ten minutes.
    config.scenes.num_test = 300
    _small_clip(config.train_clip)
    config.train_clip.run.num_steps = 1100

    _small_localizer(config.train_localizer)
    config.train_localizer.run.num_steps = 200

    _small_pretraining(config.pretrain)
    config.pretrain.regions.proposals.update(num_proposals=30, pre_nms_topk=200)
    config.pretrain.run.num_steps = 350

    detector = config.train_detector
    detector.model.preset = "scenes"
    _scenes_images(detector.data)
    detector.data.update(classes="scenes_base", max_boxes=4)
    detector.detector.update(
        samples_per_image=16,
        temperature=_SCENES_TEMPERATURE,
        templates="plain",
        regions_per_chunk=None,
    )
    detector.detector.proposals.update(_SCENES_PROPOSALS)
    _scenes_training(detector)
    detector.run.num_steps = 90
    _scenes_evaluation(detector.evaluation)
    detector.evaluation.templates = "plain"
    detector.evaluation.detection.regions_per_chunk = None
    return config


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        scenes,
        scenes_detection,
        scenes_vit,
        rn50_coco,
        rn50_cc3m,
        rn50x4_cc3m,
        vitb16_coco,
        eva02_b16_coco,
        siglip2_b16_coco,
    )
}


def get_config(recipe: str = "scenes") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/pretrain.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
