"""Whole-image contrastive training of a CLIP from images and captions, from scratch.

  --config=configs/train_clip.py --config.data.path=FOLDER   RN50 on a COCO folder

The synthetic experiment trains its small teacher with the same job (configs/pretrain.py). A recipe
states what differs from the defaults of regionclip_jax/settings; --describe prints all keys with
their meanings.
"""

import ml_collections

from regionclip_jax.recipes import defaults
from regionclip_jax.settings import TrainClipSettings


def rn50_coco() -> ml_collections.ConfigDict:
    config = defaults(TrainClipSettings)
    config.data.update(path="data/coco", split="train2017")
    return config


RECIPES = {"rn50_coco": rn50_coco}


def get_config(recipe: str = "rn50_coco") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/train_clip.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
