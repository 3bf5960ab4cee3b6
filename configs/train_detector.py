"""Training of open-vocabulary detectors: train on base classes, find novel classes.

  --config=configs/train_detector.py:coco_ovd_rn50    COCO's 48 base classes, tested on 17 novel too
  --config=configs/train_detector.py:lvis_ovd_rn50    LVIS's 866 base classes, tested on all 1203
  --config=configs/train_detector.py:coco80_rn50      all 80 classes of COCO
  --config=configs/train_detector.py:lvis1203_rn50    all 1203 of LVIS
  --config=configs/train_detector.py:coco_ovd_vitb16  on a frozen EVA-02, F-ViT; also _vitl14
  --config=configs/train_detector.py:lvis_ovd_vitb16  the same with masks, on LVIS's base classes
  --config=configs/train_detector.py:scenes           in the synthetic scenes of configs/pretrain.py
  --config=configs/train_detector.py:small            a small model on small images, no GPU

also with _rn50x4. Numbers are the reference's (docs/reference/configuration.md#recognition), for 16
images on any number of devices. Those of F-ViT are in docs/reference/training_detectors.md#f-vit,
for 64 images. A recipe states what differs from the defaults of
regionclip_jax/settings; --describe prints all keys with their meanings.
"""

import ml_collections

from regionclip_jax.recipes import defaults
from regionclip_jax.settings import TrainDetectorSettings


def coco_ovd_rn50() -> ml_collections.ConfigDict:
    config = defaults(TrainDetectorSettings)
    # Model directory of RegionCLIP's pretraining; a converted CLIP is the baseline.
    config.model.init_from = "checkpoints/regionclip_rn50"
    config.data.update(path="data/coco", split="train2017")
    # The reference's rpn_coco_48, trained on the same base classes and no others.
    config.detector.localizer = "checkpoints/rpn_coco_48"
    config.evaluation.update(path="data/coco", split="val2017")
    # As in the reference's commands for trained detectors.
    config.evaluation.detection.nms.method = "gaussian"
    return config


def lvis_ovd_rn50() -> ml_collections.ConfigDict:
    """With a mask head; the localizer is the one of large-scale jitter."""
    config = coco_ovd_rn50()
    config.data.update(
        source="lvis_folder",
        split="train",
        classes="lvis_base",
        max_boxes=512,
        repeat_threshold=0.001,
    )
    config.detector.update(
        localizer="checkpoints/rpn_lvis_866_lsj",
        background_weight=0.8,
        focal_gamma=None,
        mask_size=56,
    )
    config.detector.proposals.pre_nms_topk = 1000
    config.optimizer.boundaries = (120_000, 160_000)
    config.run.num_steps = 180_000
    config.evaluation.update(source="lvis_folder", split="val", class_split="lvis", max_boxes=512)
    config.evaluation.detection.update(
        objectness="reference", score_threshold=0.02, max_detections=300
    )
    return config


def coco80_rn50() -> ml_collections.ConfigDict:
    """All classes in training and test; also for any other data in COCO's format."""
    config = coco_ovd_rn50()
    config.data.classes = "all"
    config.evaluation.class_split = "none"
    return config


def lvis1203_rn50() -> ml_collections.ConfigDict:
    config = lvis_ovd_rn50()
    config.data.classes = "all"
    return config


def _with_pyramid(config, side: int) -> ml_collections.ConfigDict:
    """F-ViT's detector on a frozen ViT, with large-scale jitter on one square canvas."""
    config.data.update(
        short_sides=None,
        max_long_side=None,
        jitter=(0.1, 2.0),
        canvas_sizes=((side, side),),
        group_by_canvas=False,
    )
    config.detector.update(
        localizer="",
        # The initial one; it is learned.
        temperature=0.02,
        # The cross entropy divided by the number of regions.
        focal_gamma=0.0,
        regions_per_chunk=None,
    )
    config.detector.proposals.pre_nms_topk = 2000
    config.optimizer.update(
        kind="adamw",
        learning_rate=1e-4,
        weight_decay=0.1,
        clip_global_norm=1.0,
        frozen_patterns=("^visual/", "^text/", "^logit_", "background_embedding$"),
        warmup_steps=250,
    )
    config.run.batch_size = 64
    config.evaluation.update(short_side=side, max_long_side=side, canvas_sizes=((side, side),))
    config.evaluation.detection.update(objectness="none", base_fusion=0.1)
    config.evaluation.detection.nms.method = "hard"
    return config


def coco_ovd_vitb16() -> ml_collections.ConfigDict:
    config = _with_pyramid(coco_ovd_rn50(), side=640)
    # Model directory that the job "distill" wrote, or a converted EVA-02-CLIP.
    config.model.update(
        preset="EVA02-B-16", init_from="checkpoints/clipself_evab16", normalize_map=True
    )
    config.detector.update(pyramid_blocks=(3, 5, 7, 11), background_weight=0.6)
    # Three epochs of the 107,761 images with a base class.
    config.optimizer.boundaries = ()
    config.run.num_steps = 5052
    config.evaluation.detection.update(
        temperature=1 / 75, novel_fusion=0.8, score_threshold=0.01, max_detections=100
    )
    config.evaluation.detection.nms.threshold = 0.4
    return config


def coco_ovd_vitl14() -> ml_collections.ConfigDict:
    """EVA-02 L/14 of 336 pixels; levels have strides of 3.5 to 56 pixels."""
    side = 896
    config = coco_ovd_vitb16()
    config.model.update(preset="EVA02-L-14-336", init_from="checkpoints/clipself_eval14")
    config.detector.pyramid_blocks = (6, 10, 14, 23)
    config.data.canvas_sizes = ((side, side),)
    config.evaluation.update(short_side=side, max_long_side=side, canvas_sizes=((side, side),))
    return config


def lvis_ovd_vitb16() -> ml_collections.ConfigDict:
    """With a mask head."""
    config = _with_pyramid(lvis_ovd_rn50(), side=1024)
    config.model.update(
        preset="EVA02-B-16", init_from="checkpoints/clipself_evab16", normalize_map=True
    )
    config.detector.update(pyramid_blocks=(3, 5, 7, 11), background_weight=0.9)
    config.data.repeat_threshold = None
    # 48 epochs of the 100,170 images, and the rate lowered after 32 and 44 of them.
    config.optimizer.boundaries = (50_085, 68_867)
    config.run.num_steps = 75_128
    config.evaluation.detection.update(
        temperature=0.02, novel_fusion=0.6, score_threshold=1e-4, max_detections=300
    )
    config.evaluation.detection.nms.threshold = 0.5
    return config


def small() -> ml_collections.ConfigDict:
    """A small model on a few images, to check your own data."""
    config = coco80_rn50()
    config.model.update(preset="small", init_from="")
    config.detector.update(
        localizer="workdir/localizer/model",
        image_tower="random",
        samples_per_image=64,
        templates="plain",
        regions_per_chunk=None,
    )
    config.detector.proposals.update(num_proposals=300, pre_nms_topk=1000)
    config.data.update(
        short_sides=(256,),
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256), (416, 416)),
        flip_probability=0.0,
        num_threads=2,
    )
    config.optimizer.update(
        kind="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        boundaries=(),
        warmup_steps=50,
        weight_decay=0.01,
        no_decay_patterns=("bias$", "scale$"),
        frozen_patterns=("^text/", "^logit_scale"),
    )
    config.run.update(num_steps=1000, batch_size=8, checkpoint_every=200)
    config.evaluation.update(
        short_side=256,
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256)),
        templates="plain",
        num_threads=2,
    )
    config.evaluation.proposals.num_proposals = 1000
    # Background has a low weight in training; objectness of a localizer that saw the images helps.
    config.evaluation.detection.update(objectness="sigmoid", regions_per_chunk=None)
    config.evaluation.detection.nms.method = "hard"
    return config


def scenes() -> ml_collections.ConfigDict:
    """On the scenes and models of configs/pretrain.py:scenes_detection."""
    config = small()
    config.model.update(preset="scenes", init_from="workdir/scenes_detection/regionclip/model")
    config.data.update(
        source="array_record",
        path="workdir/scenes_detection/data/labelled",
        split="",
        classes="scenes_base",
        short_sides=None,
        max_long_side=None,
        canvas_sizes=((96, 96),),
        # Left and right differ in the scenes.
        flip_probability=0.0,
        max_boxes=4,
        group_by_canvas=False,
    )
    config.detector.update(
        localizer="workdir/scenes_detection/localizer/model",
        image_tower="pretrained",
        samples_per_image=16,
        temperature=0.07,
    )
    config.detector.proposals.update(num_proposals=50, pre_nms_topk=200)
    config.optimizer.update(
        learning_rate=1e-3,
        warmup_steps=20,
        no_decay_patterns=("bias$",),
        frozen_patterns=("norm", "^text/", "^logit_scale"),
    )
    config.run.update(num_steps=90, batch_size=32, checkpoint_every=50)
    config.evaluation.update(
        source="array_record",
        path="workdir/scenes_detection/data/held_out",
        split="",
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((96, 96),),
        batch_size=32,
        max_boxes=4,
    )
    config.evaluation.proposals.num_proposals = None
    config.evaluation.detection.objectness = "none"
    return config


def _with_rn50x4(recipe):
    def rn50x4() -> ml_collections.ConfigDict:
        config = recipe()
        config.model.update(preset="RN50x4", init_from="checkpoints/regionclip_rn50x4")
        return config

    return rn50x4


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        coco_ovd_rn50,
        lvis_ovd_rn50,
        coco80_rn50,
        lvis1203_rn50,
        coco_ovd_vitb16,
        coco_ovd_vitl14,
        lvis_ovd_vitb16,
        scenes,
        small,
    )
}
RECIPES |= {f"{name}x4": _with_rn50x4(r) for name, r in RECIPES.items() if name.endswith("rn50")}


def get_config(recipe: str = "coco_ovd_rn50") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/train_detector.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
