"""Training of localizers: region proposal networks on boxes of any class.

  --config=configs/train_localizer.py:coco_c4     on COCO's 48 base classes, one level
  --config=configs/train_localizer.py:lvis_fpn    on LVIS's 866 base classes, feature pyramid
  --config=configs/train_localizer.py:lvis_fpn_lsj  the same with large-scale jitter
  --config=configs/train_localizer.py:small       a small pyramid for small images and no GPU

Numbers are the reference's (docs/reference/configuration.md#localizers), which trains a whole Mask
R-CNN; here the proposal network is trained alone. A recipe states what differs from the defaults of
regionclip_jax/settings; --describe prints all keys with their meanings.
"""

import ml_collections

from regionclip_jax.recipes import defaults
from regionclip_jax.settings import TrainLocalizerSettings


def coco_c4() -> ml_collections.ConfigDict:
    config = defaults(TrainLocalizerSettings)
    # Model directory with a trunk trained on ImageNet.
    config.localizer.init_from = "checkpoints/rn50_imagenet"
    config.data.update(path="data/coco", split="train2017")
    config.evaluation.update(path="data/coco", split="val2017")
    return config


def lvis_fpn() -> ml_collections.ConfigDict:
    config = coco_c4()
    config.localizer.preset = "rn50_fpn"
    config.data.update(
        source="lvis_folder",
        split="train",
        classes="lvis_base",
        max_boxes=512,
        repeat_threshold=0.001,
    )
    config.evaluation.update(source="lvis_folder", split="val", class_split="lvis", max_boxes=512)
    config.evaluation.proposals.pre_nms_topk = 1000
    config.optimizer.boundaries = (120_000, 160_000)
    config.run.num_steps = 180_000
    return config


def lvis_fpn_lsj() -> ml_collections.ConfigDict:
    """Large-scale jitter, norms in the pyramid, nothing frozen, live norms, four times as long."""
    config = lvis_fpn()
    config.localizer.update(preset="rn50_fpn_lsj", norm="live")
    config.data.update(
        short_sides=None,
        max_long_side=None,
        jitter=(0.1, 2.0),
        canvas_sizes=((1024, 1024),),
        group_by_canvas=False,
    )
    config.optimizer.update(
        frozen_patterns=(),
        # The reference does not decay norms; in the other recipes norms are frozen.
        no_decay_patterns=("norm",),
        boundaries=(480_000, 640_000),
    )
    config.run.num_steps = 720_000
    return config


def small() -> ml_collections.ConfigDict:
    """From random weights on a few images, to check your own data."""
    config = coco_c4()
    config.localizer.update(preset="small", init_from="", init_part="all", norm="live")
    config.data.update(
        short_sides=(256,),
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256), (416, 416)),
        # The check is to overfit; mirrored images would double the number of patterns.
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
        frozen_patterns=(),
    )
    config.run.update(num_steps=500, batch_size=8, checkpoint_every=200)
    config.evaluation.update(
        short_side=256,
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256)),
        num_threads=2,
    )
    config.evaluation.proposals.pre_nms_topk = 1000
    return config


RECIPES = {recipe.__name__: recipe for recipe in (coco_c4, lvis_fpn, lvis_fpn_lsj, small)}


def get_config(recipe: str = "coco_c4") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/train_localizer.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
