"""Training of localizers: region proposal networks on boxes, whatever they are of.

  --config=configs/train_localizer.py:coco_c4     on COCO's 48 base classes, one level
  --config=configs/train_localizer.py:lvis_fpn    on LVIS's 866 base classes, feature pyramid
  --config=configs/train_localizer.py:lvis_fpn_lsj  the same with large-scale jitter
  --config=configs/train_localizer.py:small       a small pyramid for small pictures and no GPU

Numbers are the reference's (docs/reference/configuration.md#localizers), which trains a whole Mask
R-CNN; here the proposal network is trained alone. regionclip_jax/config/sections.py says what each
key means.
"""

import ml_collections

# Pictures of 4:3, all longer ones, and an epoch's rest: 8.4% of the pixels of COCO are padding at
# the largest short side, 25% over all of them (docs/static_shapes.md).
CANVASES = ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344))


def coco_c4() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "train_localizer"
    config.matmul_precision = "default"
    config.localizer = dict(
        preset="rn50_c4",
        # A directory whose trunk was trained on ImageNet; "" starts from random weights, which
        # needs norm="live" and nothing frozen.
        init_from="checkpoints/rn50_imagenet",
        init_part="trunk",
        norm="frozen",
        dtype="auto",
        kept_activations="all",
    )
    config.data = dict(
        source="coco_folder",
        path="data/coco",
        split="train2017",
        annotations="",
        classes="coco_base",
        short_sides=(640, 672, 704, 736, 768, 800),
        max_long_side=1333,
        jitter=None,
        resize_method="bilinear_round",
        canvas_sizes=CANVASES,
        flip_probability=0.5,
        # The most that any image of COCO has, and some.
        max_boxes=100,
        repeat_threshold=None,
        group_by_canvas=True,
        num_threads=16,
        num_workers=0,
        fault_fraction=0.001,
        fault_minimum=10,
    )
    config.anchors = dict(
        anchors_per_image=256, positive_fraction=0.5, negative_below=0.3, positive_from=0.7
    )
    config.optimizer = dict(
        kind="sgd",
        # For batch 16; nothing scales it to another batch.
        learning_rate=0.02,
        schedule="multistep",
        boundaries=(60_000, 80_000),
        gamma=0.1,
        warmup_factor=0.001,
        warmup_steps=1000,
        momentum=0.9,
        weight_decay=1e-4,
        clip_per_tensor_norm=None,
        no_decay_patterns=(),
        # FREEZE_AT 2, and every norm.
        frozen_patterns=("trunk/stem/", "trunk/res2/", "norm"),
    )
    config.run = dict(
        num_steps=90_000,
        batch_size=16,
        fsdp=1,
        seed=0,
        log_every=50,
        checkpoint_every=5000,
        checkpoints_to_keep=3,
    )
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
        canvas_sizes=CANVASES,
        batch_size=1,
        max_boxes=100,
        regions="localizer",
        localizer="",
        num_proposals=1000,
        pre_nms_topk=6000,
        proposal_nms_threshold=0.7,
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
        regions_per_chunk=100,
        roi_align="auto",
        templates="clip",
        num_threads=8,
        fault_fraction=0.0,
    )
    return config


def lvis_fpn() -> ml_collections.ConfigDict:
    config = coco_c4()
    config.localizer.preset = "rn50_fpn"
    config.data.source = config.evaluation.source = "lvis_folder"
    config.data.split, config.evaluation.split = "train", "val"
    config.data.classes = "lvis_base"
    config.data.max_boxes = config.evaluation.max_boxes = 512
    config.data.repeat_threshold = 0.001
    config.evaluation.class_split = "lvis"
    config.evaluation.pre_nms_topk = 1000
    config.optimizer.boundaries = (120_000, 160_000)
    config.run.num_steps = 180_000
    return config


def lvis_fpn_lsj() -> ml_collections.ConfigDict:
    """Large-scale jitter, norms in the pyramid, nothing frozen, live norms, four times as long."""
    config = lvis_fpn()
    config.localizer.preset = "rn50_fpn_lsj"
    config.localizer.norm = "live"
    config.data.short_sides = None
    config.data.max_long_side = None
    config.data.jitter = (0.1, 2.0)
    config.data.canvas_sizes = ((1024, 1024),)
    config.data.group_by_canvas = False
    config.optimizer.frozen_patterns = ()
    # The reference decays no norm; in the other recipes norms are frozen.
    config.optimizer.no_decay_patterns = ("norm",)
    config.optimizer.boundaries = (480_000, 640_000)
    config.run.num_steps = 720_000
    return config


def small() -> ml_collections.ConfigDict:
    """From random weights on a few pictures, such as a check that one's own data are in order."""
    config = coco_c4()
    config.localizer.update(preset="small", init_from="", init_part="all", norm="live")
    config.data.update(
        short_sides=(256,),
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256), (416, 416)),
        # Learning by heart is the check; mirrors would double what there is to learn.
        flip_probability=0.0,
        num_threads=2,
    )
    config.optimizer.update(
        kind="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        boundaries=(),
        gamma=1.0,
        warmup_factor=0.0,
        warmup_steps=50,
        weight_decay=0.01,
        no_decay_patterns=("bias$", "scale$"),
        frozen_patterns=(),
    )
    config.run.update(num_steps=500, batch_size=8, log_every=50, checkpoint_every=200)
    config.evaluation.update(
        short_side=256,
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256)),
        pre_nms_topk=1000,
        num_threads=2,
    )
    return config


RECIPES = {recipe.__name__: recipe for recipe in (coco_c4, lvis_fpn, lvis_fpn_lsj, small)}


def get_config(recipe: str = "coco_c4") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/train_localizer.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
