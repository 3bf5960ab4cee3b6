"""Whole-image contrastive training of a CLIP from pictures and captions, from scratch.

  --config=configs/train_clip.py --config.data.path=FOLDER   RN50 on a COCO folder

The embedded experiment trains its small teacher with the same job (configs/pretrain.py).
regionclip_jax/config/sections.py says what each key means.
"""

import ml_collections


def rn50_coco() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "train_clip"
    config.matmul_precision = "default"
    config.image_text_chunk = None
    config.model = dict(preset="RN50", init_from="", dtype="auto", kept_activations="all")
    config.data = dict(
        source="coco_folder",
        path="data/coco",
        split="train2017",
        mixture=(),
        # The whole picture on CLIP's 224 x 224 canvas: no crop cuts off what the caption names.
        short_sides=(168,),
        max_long_side=224,
        resize_method="bicubic_truncate",
        canvas_sizes=((224, 224),),
        group_by_canvas=False,
        flip_probability=0.5,
        flip_directional_captions=False,
        context_length=77,
        num_threads=16,
        num_workers=0,
        fault_fraction=0.01,
        fault_minimum=100,
    )
    config.optimizer = dict(
        kind="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        boundaries=(),
        gamma=1.0,
        warmup_factor=0.0,
        warmup_steps=2000,
        momentum=0.9,
        weight_decay=0.2,
        clip_per_tensor_norm=None,
        no_decay_patterns=("bias$", "scale$", "embedding$"),
        frozen_patterns=(),
    )
    config.run = dict(
        num_steps=50_000,
        batch_size=1024,
        fsdp=1,
        seed=0,
        log_every=50,
        checkpoint_every=1000,
        checkpoints_to_keep=3,
    )
    return config


RECIPES = {"rn50_coco": rn50_coco}


def get_config(recipe: str = "rn50_coco") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/train_clip.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
