"""Zero-shot recognition of ground-truth boxes (gt) and detection with a localizer (rpn).

  --config=configs/evaluate.py:coco_gt_rn50 --config.models.student=workdir/model

The variants are the paper's zero-shot tables (docs/reference/scripts.md#zero-shot-inference):
coco_* on COCO's 48 base and 17 novel classes, lvis_* on LVIS's 1203. The baseline of each is the
same command with a converted CLIP as the model; *_crops is CLIP on each region by itself (paper
figure 1). scenes detects in the drawn world of configs/pretrain.py, with sliding windows.
regionclip_jax/config/sections.py says what each key means.
"""

import ml_collections


def _recipe() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "evaluate"
    # In float32, bit-stable numbers are worth more than speed; bfloat16 is multiplied in one way.
    config.matmul_precision = "highest"
    config.models = {"student": "workdir/model"}
    # bfloat16 on GPUs and TPUs, float32 on CPUs. The paper's tables were computed in float32; to
    # compare with them to the last digit: --config.dtype=float32
    config.dtype = "auto"
    config.evaluation = dict(
        source="coco_folder",
        path="data/coco",
        split="val2017",
        annotations="",
        class_split="coco_48_17",
        vocabulary="",
        short_side=800,
        max_long_side=1333,
        resize_method="bilinear_round",
        canvas_sizes=((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344)),
        batch_size=1,
        # The most that any image of COCO has, and some.
        max_boxes=100,
        regions="ground_truth",
        localizer="",
        num_proposals=1000,
        pre_nms_topk=1000,
        proposal_nms_threshold=0.9,
        window_sides=(),
        embed_from="features",
        temperature=0.01,
        objectness="none",
        score_threshold=0.001,
        nms="hard",
        nms_threshold=0.5,
        soft_nms_sigma=0.5,
        soft_nms_prune=0.001,
        max_detections=100,
        regions_per_chunk=25,
        roi_align="auto",
        templates="clip",
        num_threads=8,
        fault_fraction=0.0,
    )
    return config


def _with_localizer(config):
    """The reference's proposals for zero-shot detection: the pyramid trained on LVIS's 866."""
    config.evaluation.regions = "localizer"
    config.evaluation.objectness = "reference"
    # A thousand regions a picture: larger chunks waste less.
    config.evaluation.regions_per_chunk = 100
    return config


def _on_lvis(config):
    config.evaluation.source = "lvis_folder"
    config.evaluation.split = "val"
    config.evaluation.class_split = "lvis"
    config.evaluation.max_detections = 300
    # LVIS annotates up to 300 and more boxes in an image.
    config.evaluation.max_boxes = 512
    return config


def coco_gt() -> ml_collections.ConfigDict:
    return _recipe()


def coco_rpn() -> ml_collections.ConfigDict:
    return _with_localizer(_recipe())


def lvis_gt() -> ml_collections.ConfigDict:
    config = _on_lvis(_recipe())
    config.evaluation.score_threshold = 0.0001
    return config


def lvis_rpn() -> ml_collections.ConfigDict:
    config = _with_localizer(_on_lvis(_recipe()))
    config.evaluation.score_threshold = 0.02
    return config


def coco80_gt() -> ml_collections.ConfigDict:
    """All 80 classes in one group; also for any other data in COCO's format."""
    config = _recipe()
    config.evaluation.class_split = "none"
    return config


def _crops(config):
    config.evaluation.embed_from = "crops"
    return config


def scenes() -> ml_collections.ConfigDict:
    config = _recipe()
    config.models = {
        "teacher": "workdir/scenes/teacher/model",
        "student": "workdir/scenes/student/model",
    }
    config.matmul_precision = "default"
    config.evaluation.update(
        source="array_record",
        path="workdir/scenes/data/held_out",
        split="",
        annotations="",
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((96, 96),),
        batch_size=16,
        max_boxes=4,
        regions="windows",
        window_sides=(0.32, 0.45),
        temperature=0.07,
        regions_per_chunk=None,
        templates="plain",
        num_threads=2,
        fault_fraction=0.01,
    )
    return config


# The published models differ in what their cards say, so _rn50 and _rn50x4 evaluate alike.
_TABLES = (coco_gt, coco_rpn, lvis_gt, lvis_rpn)
RECIPES = {recipe.__name__: recipe for recipe in (scenes, coco80_gt, *_TABLES)}
for _table in _TABLES:
    for _model in ("rn50", "rn50x4"):
        RECIPES[f"{_table.__name__}_{_model}"] = _table
for _table in (coco_gt, lvis_gt):
    RECIPES[f"{_table.__name__}_crops"] = lambda table=_table: _crops(table())


def get_config(recipe: str = "coco_gt") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/evaluate.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
