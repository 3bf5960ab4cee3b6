"""Zero-shot recognition of ground-truth boxes.

  --config=configs/evaluate.py:coco_gt --config.models.student=workdir/model

coco_gt is the paper's zero-shot setting with ground-truth boxes on COCO's 48 base and 17 novel
classes.
regionclip_jax/config.py says what each key means.
"""

import ml_collections


def coco_gt() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "evaluate"
    # Bit-stable numbers are worth more than speed here.
    config.matmul_precision = "highest"
    config.models = {"student": "workdir/model"}
    config.dtype = "float32"
    config.evaluation = dict(
        source="coco_folder",
        path="data/coco",
        split="val2017",
        class_split="coco_48_17",
        short_side=800,
        max_long_side=1333,
        resize_method="bilinear_round",
        canvas_sizes=((800, 1344), (1344, 800), (1344, 1344)),
        batch_size=1,
        # The most that any image of COCO has, and some.
        max_boxes=100,
        temperature=0.01,
        max_detections=100,
        regions_per_chunk=25,
        roi_align="auto",
        templates="clip",
        num_threads=8,
        fault_fraction=0.0,
    )
    return config


def coco80_gt() -> ml_collections.ConfigDict:
    """All 80 classes in one group; also for any other data in COCO's format."""
    config = coco_gt()
    config.evaluation.class_split = "none"
    return config


RECIPES = {"coco_gt": coco_gt, "coco80_gt": coco80_gt}


def get_config(recipe: str = "coco_gt") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/evaluate.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
