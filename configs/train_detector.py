"""Training of open-vocabulary detectors: base classes in, novel classes out.

  --config=configs/train_detector.py:coco_ovd_rn50    COCO's 48 base classes, tested on 17 novel too
  --config=configs/train_detector.py:lvis_ovd_rn50    LVIS's 866 base classes, tested on all 1203
  --config=configs/train_detector.py:coco80_rn50      all 80 classes of COCO
  --config=configs/train_detector.py:lvis1203_rn50    all 1203 of LVIS
  --config=configs/train_detector.py:scenes           in the drawn world of configs/pretrain.py
  --config=configs/train_detector.py:small            a small model on small pictures, no GPU

also with _rn50x4. Numbers are the reference's (docs/reference/configuration.md#recognition). They
are for 16 images on any number of devices. regionclip_jax/config/sections.py says what each key
means.
"""

import ml_collections

# Pictures of 4:3, all longer ones, and an epoch's rest: 8.4% of the pixels of COCO are padding at
# the largest short side, 25% over all of them (docs/static_shapes.md).
CANVASES = ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344))


def coco_ovd_rn50() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "train_detector"
    config.matmul_precision = "default"
    config.model = dict(
        preset="RN50",
        # What RegionCLIP's pretraining left; a converted CLIP is what it is compared with.
        init_from="checkpoints/regionclip_rn50",
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
    config.detector = dict(
        # The reference's rpn_coco_48, which has seen the same base classes and no others.
        localizer="checkpoints/rpn_coco_48",
        image_tower="pretrained",
        # What the frozen localizer proposes when it is tested.
        num_proposals=1000,
        pre_nms_topk=6000,
        proposal_nms_threshold=0.7,
        samples_per_image=512,
        positive_fraction=0.25,
        positive_iou=0.5,
        temperature=0.01,
        background_weight=0.2,
        focal_gamma=0.5,
        mask_size=None,
        vocabulary="",
        templates="clip",
        regions_per_chunk=64,
        roi_align="auto",
    )
    config.optimizer = dict(
        kind="sgd",
        # For batch 16; nothing scales it to another batch.
        learning_rate=0.002,
        schedule="multistep",
        boundaries=(60_000, 80_000),
        gamma=0.1,
        warmup_factor=0.001,
        warmup_steps=5000,
        momentum=0.9,
        weight_decay=1e-4,
        clip_per_tensor_norm=None,
        no_decay_patterns=(),
        # Stem and layer1 (FREEZE_AT 2), every batch norm, the text tower.
        frozen_patterns=("visual/stem/", "visual/layer1/", "norm", "^text/", "^logit_scale"),
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
        # The detector's own copy.
        localizer="",
        num_proposals=1000,
        pre_nms_topk=6000,
        proposal_nms_threshold=0.7,
        window_sides=(),
        embed_from="features",
        temperature=0.01,
        objectness="none",
        score_threshold=0.001,
        # As the reference's commands for trained detectors.
        nms="gaussian",
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


def lvis_ovd_rn50() -> ml_collections.ConfigDict:
    """With a mask head; the localizer is the one of large-scale jitter."""
    config = coco_ovd_rn50()
    config.data.source = config.evaluation.source = "lvis_folder"
    config.data.split, config.evaluation.split = "train", "val"
    config.data.classes = "lvis_base"
    # LVIS annotates up to 300 and more boxes in an image.
    config.data.max_boxes = config.evaluation.max_boxes = 512
    config.data.repeat_threshold = 0.001
    config.detector.localizer = "checkpoints/rpn_lvis_866_lsj"
    config.detector.pre_nms_topk = config.evaluation.pre_nms_topk = 1000
    config.detector.background_weight = 0.8
    config.detector.focal_gamma = None
    config.detector.mask_size = 56
    config.optimizer.boundaries = (120_000, 160_000)
    config.run.num_steps = 180_000
    config.evaluation.class_split = "lvis"
    config.evaluation.objectness = "reference"
    config.evaluation.score_threshold = 0.02
    config.evaluation.max_detections = 300
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


def small() -> ml_collections.ConfigDict:
    """A small model on a few pictures, such as a check that one's own data are in order."""
    config = coco80_rn50()
    config.model.update(preset="small", init_from="")
    config.detector.update(
        localizer="workdir/localizer/model",
        image_tower="random",
        num_proposals=300,
        pre_nms_topk=1000,
        samples_per_image=64,
        templates="plain",
        regions_per_chunk=None,
    )
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
        gamma=1.0,
        warmup_factor=0.0,
        warmup_steps=50,
        weight_decay=0.01,
        no_decay_patterns=("bias$", "scale$"),
        frozen_patterns=("^text/", "^logit_scale"),
    )
    config.run.update(num_steps=1000, batch_size=8, log_every=50, checkpoint_every=200)
    config.evaluation.update(
        short_side=256,
        max_long_side=416,
        canvas_sizes=((256, 416), (416, 256)),
        pre_nms_topk=1000,
        # Backgrounds weigh little in training; a localizer that knows the pictures makes up for it.
        objectness="reference",
        templates="plain",
        regions_per_chunk=None,
        nms="hard",
        num_threads=2,
    )
    return config


def scenes() -> ml_collections.ConfigDict:
    """In the world that configs/pretrain.py:scenes_detection drew, from what it trained."""
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
        # The drawn world has a left and a right.
        flip_probability=0.0,
        max_boxes=4,
        group_by_canvas=False,
    )
    config.detector.update(
        localizer="workdir/scenes_detection/localizer/model",
        image_tower="pretrained",
        num_proposals=50,
        pre_nms_topk=200,
        samples_per_image=16,
        temperature=0.07,
    )
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
        num_proposals=50,
        pre_nms_topk=200,
        temperature=0.07,
        objectness="none",
    )
    return config


def _with_rn50x4(recipe):
    def rn50x4() -> ml_collections.ConfigDict:
        config = recipe()
        config.model.preset = "RN50x4"
        config.model.init_from = "checkpoints/regionclip_rn50x4"
        return config

    return rn50x4


RECIPES = {
    recipe.__name__: recipe
    for recipe in (coco_ovd_rn50, lvis_ovd_rn50, coco80_rn50, lvis1203_rn50, scenes, small)
}
RECIPES |= {f"{name}x4": _with_rn50x4(r) for name, r in RECIPES.items() if name.endswith("rn50")}


def get_config(recipe: str = "coco_ovd_rn50") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/train_detector.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
