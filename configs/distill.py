"""Distillation of a ViT's embeddings of crops into its dense map (CLIPSelf), from images alone.

  --config=configs/distill.py:vitb16_patches     ViT-B/16 on COCO's images, cells of random grids
  --config=configs/distill.py:vitb16_proposals   the same, boxes of a localizer

For a folder of images: --config.data.source=image_folder --config.data.path=FOLDER. The recipes are
those of the paper (docs/reference/distillation.md), but for the departures listed there. A recipe
states what differs from the defaults of regionclip_jax/settings; --describe prints all keys with
their meanings.
"""

import ml_collections

from regionclip_jax.recipes import defaults
from regionclip_jax.settings import DistillSettings


def vitb16_patches() -> ml_collections.ConfigDict:
    config = defaults(DistillSettings)
    # A model directory from scripts/convert_checkpoint.py.
    config.model.init_from = "checkpoints/clip_vitb16"
    config.data.update(path="data/coco", split="train2017")
    return config


def vitb16_proposals() -> ml_collections.ConfigDict:
    config = vitb16_patches()
    # A model directory of configs/train_localizer.py.
    config.regions.update(boxes="proposals", localizer="checkpoints/localizer")
    return config


RECIPES = {recipe.__name__: recipe for recipe in (vitb16_patches, vitb16_proposals)}


def get_config(recipe: str = "vitb16_patches") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/distill.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
