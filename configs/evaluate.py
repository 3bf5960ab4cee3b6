"""Zero-shot recognition of ground-truth boxes (gt) and detection with a localizer (rpn).

  --config=configs/evaluate.py:coco_gt_rn50 --config.models.student=workdir/model

The variants are the paper's zero-shot tables (docs/reference/scripts.md#zero-shot-inference):
coco_* on COCO's 48 base and 17 novel classes, lvis_* on LVIS's 1203. The baseline of each is the
same command with a converted CLIP as the model; *_crops is CLIP on each region alone (paper
figure 1). scenes detects in the synthetic scenes of configs/pretrain.py, on its localizer's
proposals. detector evaluates a model directory as regionclip detect uses it: its localizer, and the
settings of its own scores. In all other recipes the numbers of scores are the recipe's. A recipe
states what differs from the defaults of regionclip_jax/settings; --describe prints all keys with
their meanings.
"""

import ml_collections

from regionclip_jax.recipes import defaults
from regionclip_jax.settings import DetectionSettings, EvaluateSettings, ProposalSettings


def detector() -> ml_collections.ConfigDict:
    """Data in COCO's format; keys of proposals and scores are None: the directory's own."""
    config = defaults(EvaluateSettings)
    config.evaluation.update(
        path="data/coco", split="val2017", class_split="none", regions="localizer"
    )
    config.evaluation.detection.regions_per_chunk = 100
    return config


def _recipe() -> ml_collections.ConfigDict:
    config = defaults(EvaluateSettings)
    config.evaluation.update(
        path="data/coco",
        split="val2017",
        # The reference's numbers for every model.
        proposals=defaults(ProposalSettings),
        detection=defaults(DetectionSettings),
    )
    # A SigLIP has its own sigmoid, other models the softmax.
    config.evaluation.detection.update(
        objectness="none", regions_per_chunk=25, score_activation=None, score_bias=None
    )
    return config


def _with_localizer(config):
    """The reference's proposals for zero-shot detection: the pyramid trained on LVIS's 866."""
    config.evaluation.regions = "localizer"
    # With a thousand regions per image, larger chunks waste less.
    config.evaluation.detection.update(objectness="reference", regions_per_chunk=100)
    return config


def _on_lvis(config):
    config.evaluation.update(source="lvis_folder", split="val", class_split="lvis", max_boxes=512)
    config.evaluation.detection.max_detections = 300
    return config


def coco_gt() -> ml_collections.ConfigDict:
    return _recipe()


def coco_rpn() -> ml_collections.ConfigDict:
    return _with_localizer(_recipe())


def lvis_gt() -> ml_collections.ConfigDict:
    config = _on_lvis(_recipe())
    config.evaluation.detection.score_threshold = 0.0001
    return config


def lvis_rpn() -> ml_collections.ConfigDict:
    config = _with_localizer(_on_lvis(_recipe()))
    config.evaluation.detection.score_threshold = 0.02
    return config


def coco80_gt() -> ml_collections.ConfigDict:
    """All 80 classes in one group; also for any other data in COCO's format."""
    config = _recipe()
    config.evaluation.class_split = "none"
    return config


def _crops(config):
    config.evaluation.detection.embed_from = "crops"
    return config


def scenes() -> ml_collections.ConfigDict:
    config = defaults(EvaluateSettings)
    config.models = {
        "teacher": "workdir/scenes/teacher/model",
        "student": "workdir/scenes/student/model",
    }
    config.matmul_precision = "default"
    config.evaluation.update(
        source="array_record",
        path="workdir/scenes/data/held_out",
        class_split="scenes",
        short_side=None,
        max_long_side=None,
        canvas_sizes=((96, 96),),
        batch_size=16,
        max_boxes=4,
        regions="localizer",
        localizer="workdir/scenes/localizer/model",
        templates="plain",
        num_threads=2,
        max_skipped_fraction=0.01,
    )
    # The numbers of the experiment's own detection.
    config.evaluation.proposals.update(num_proposals=50, pre_nms_topk=200, voting_threshold=0.4)
    config.evaluation.detection.update(
        temperature=0.07, objectness="sigmoid", regions_per_chunk=None
    )
    config.evaluation.detection.nms.threshold = 0.3
    return config


# The model cards state the architecture, so _rn50 and _rn50x4 are the same recipe.
_TABLES = (coco_gt, coco_rpn, lvis_gt, lvis_rpn)
RECIPES = {recipe.__name__: recipe for recipe in (scenes, detector, coco80_gt, *_TABLES)}
for _table in _TABLES:
    for _model in ("rn50", "rn50x4"):
        RECIPES[f"{_table.__name__}_{_model}"] = _table
for _table in (coco_gt, lvis_gt):
    RECIPES[f"{_table.__name__}_crops"] = lambda table=_table: _crops(table())


def get_config(recipe: str = "coco_gt") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/evaluate.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
