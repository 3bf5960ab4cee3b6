"""Region-text pretraining.

  --config=configs/pretrain.py               the embedded experiment on drawn scenes
  --config=configs/pretrain.py:scenes_detection  the same all the way to trained detectors
  --config=configs/pretrain.py:rn50_coco     the paper's RN50 on a COCO folder
  --config=configs/pretrain.py:rn50_cc3m     the paper's RN50 on CC3M as TSV pairs
  --config=configs/pretrain.py:rn50x4_cc3m   the paper's RN50x4
  --config=configs/pretrain.py:vitb16_coco   ViT-B/16 on a COCO folder

The recipes of the paper follow docs/reference/configuration.md#pretraining-keys: what the
reference's pretrain.sh and its yaml files set. regionclip_jax/config/sections.py says what each key
means.
"""

import ml_collections

# Multiples of 32 that hold every picture of the paper's resize: those of 4:3, all longer ones, and
# an epoch's rest. On COCO's sizes 8.4% of the pixels are padding, with the 4:3 ones left out 17%,
# in batches of any shape 51% (docs/static_shapes.md).
CLIP_CANVASES = ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1344, 1344))


def rn50_coco() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "pretrain"
    config.matmul_precision = "default"

    config.student = dict(
        preset="RN50",
        # A model directory from scripts/convert_checkpoint.py.
        init_from="checkpoints/clip_rn50",
        dtype="auto",
        kept_activations="all",
    )
    # Static in the paper: the CLIP that the student starts from.
    config.teacher = dict(preset="RN50", init_from="checkpoints/clip_rn50", dtype="auto")

    config.data = dict(
        source="coco_folder",
        path="data/coco",
        split="train2017",
        # Several sources, e.g. (dict(source="array_record", path="data/cc3m", split="", weight=3),
        # dict(source="coco_folder", path="data/coco", split="train2017", weight=1)).
        mixture=(),
        short_sides=(800,),
        max_long_side=1333,
        resize_method="bicubic_truncate",
        canvas_sizes=CLIP_CANVASES,
        group_by_canvas=True,
        flip_probability=0.5,
        # The reference's; 3 of 1,000 captions of COCO say left or right.
        flip_directional_captions=True,
        context_length=77,
        num_threads=16,
        num_workers=0,
        # A web-scale set has broken files; a run should not die of them, nor hide them.
        fault_fraction=0.01,
        fault_minimum=100,
    )

    config.concepts = dict(
        # One concept a line, e.g. the nouns of the captions (paper: 4,764 from COCO captions).
        names_file="data/concepts.txt",
        templates="clip",
    )

    config.regions = dict(
        localizer="",
        num_proposals=300,
        num_regions=100,
        pre_nms_topk=1000,
        proposal_nms_threshold=0.5,
        box_grid=8,
        box_sides=None,
        temperature=0.01,
        # Fixed in the reference, whatever the student's is.
        teacher_temperature=0.01,
        concept_threshold=0.1,
        # 96 images on 32 GPUs: the reference's region losses see 3 images.
        images_per_group=3,
        regions_per_softmax=None,
        micro_batches=1,
        image_text_chunk=None,
        image_text_weight=1.0,
        distillation_weight=1.0,
        contrastive_weight=1.0,
        # A knowing departure: in "reference" a picture's features depend on its batch.
        padding="invisible",
        regions_per_chunk=25,
        roi_align="auto",
    )

    config.optimizer = dict(
        kind="sgd",
        # For batch 96; nothing scales it to another batch.
        learning_rate=0.002,
        schedule="multistep",
        boundaries=(300_000, 525_000),
        gamma=0.1,
        warmup_factor=0.001,
        warmup_steps=1000,
        momentum=0.9,
        weight_decay=1e-4,
        clip_per_tensor_norm=5.0,
        no_decay_patterns=(),
        # Stem and layer1 (FREEZE_AT 2), every batch norm, the text tower.
        frozen_patterns=(
            "visual/stem/",
            "visual/layer1/",
            "norm",
            "^text/",
            "^logit_scale",
        ),
    )

    config.run = dict(
        num_steps=600_000,
        batch_size=96,
        fsdp=1,
        seed=0,
        log_every=50,
        checkpoint_every=5000,
        checkpoints_to_keep=3,
    )
    return config


def rn50_cc3m() -> ml_collections.ConfigDict:
    config = rn50_coco()
    config.data.source = "tsv_pairs"
    config.data.path = "data/cc3m"
    config.data.split = ""
    return config


def rn50x4_cc3m() -> ml_collections.ConfigDict:
    config = rn50_cc3m()
    for model in (config.student, config.teacher):
        model.preset = "RN50x4"
        model.init_from = "checkpoints/clip_rn50x4"
    return config


def vitb16_coco() -> ml_collections.ConfigDict:
    """Not a recipe of the paper: its reference never got its ViT branch to work."""
    config = rn50_coco()
    for model in (config.student, config.teacher):
        model.preset = "ViT-B/16"
        model.init_from = "checkpoints/clip_vitb16"
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 0.1
    config.optimizer.no_decay_patterns = ("bias$", "ln_")
    # The first half of the blocks, as the ResNet recipe freezes its first stages.
    config.optimizer.frozen_patterns = (
        "visual/patch_embedding",
        "visual/class_embedding",
        "visual/positional_embedding",
        "visual/ln_pre",
        "visual/blocks/block[0-5]/",
        "^text/",
        "^logit_scale",
    )
    # Self-attention over an 800 x 1344 canvas would see 4,200 patches; the grid was made for 196.
    config.data.short_sides = (448,)
    config.data.max_long_side = 746
    # As above, whole patches: 8.4% of the pixels are padding.
    config.data.canvas_sizes = ((448, 608), (608, 448), (448, 752), (752, 448), (752, 752))
    config.data.flip_directional_captions = False
    return config


def scenes() -> ml_collections.ConfigDict:
    """The embedded experiment: about 8 minutes on 2 CPU cores, no download."""
    config = ml_collections.ConfigDict()
    config.job = "scenes_experiment"
    config.matmul_precision = "default"
    config.seed = 0

    config.scenes = dict(
        seed=0,
        side=96,
        # What a CLIP sees of the web: mostly one large thing.
        num_closeups=8000,
        # What RegionCLIP is pretrained on: several smaller things.
        num_scenes=6000,
        num_test=800,
        closeup_things=(1, 1),
        closeup_sizes=(0.4, 0.95),
        scene_things=(2, 4),
        scene_sizes=(0.3, 0.55),
        overlap=0.2,
        typicality=0.8,
        clutter=5,
    )

    teacher = dict(preset="scenes", init_from="", dtype="auto")
    model = dict(teacher, kept_activations="all")
    data = dict(
        source="array_record",
        path="",
        split="",
        mixture=(),
        short_sides=None,
        max_long_side=None,
        resize_method="bicubic_truncate",
        canvas_sizes=((96, 96),),
        group_by_canvas=False,
        # The drawn world has a left and a right; a mirror would double what there is to learn.
        flip_probability=0.0,
        flip_directional_captions=False,
        context_length=32,
        num_threads=2,
        num_workers=0,
        fault_fraction=0.01,
        fault_minimum=10,
    )
    optimizer = dict(
        kind="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        boundaries=(),
        gamma=1.0,
        warmup_factor=0.0,
        warmup_steps=200,
        momentum=0.9,
        weight_decay=0.05,
        clip_per_tensor_norm=None,
        no_decay_patterns=("bias$", "scale$"),
        frozen_patterns=(),
    )
    run = dict(
        num_steps=1400,
        batch_size=32,
        fsdp=1,
        seed=0,
        log_every=100,
        checkpoint_every=300,
        checkpoints_to_keep=2,
    )

    config.train_clip = ml_collections.ConfigDict(
        dict(
            job="train_clip",
            matmul_precision="default",
            image_text_chunk=None,
            model=model,
            data=data,
            optimizer=optimizer,
            run=run,
        )
    )

    config.pretrain = ml_collections.ConfigDict(
        dict(
            job="pretrain",
            matmul_precision="default",
            student=model,
            teacher=teacher,
            data=data,
            concepts=dict(names_file="", templates="plain"),
            regions=dict(
                localizer="",
                num_proposals=64,
                num_regions=12,
                pre_nms_topk=1000,
                proposal_nms_threshold=0.5,
                box_grid=8,
                # About as large as the things: most of the reference's boxes hold none or several.
                box_sides=(0.25, 0.6),
                # The small CLIP learns a temperature near this one, as CLIP learned 0.01.
                temperature=0.07,
                teacher_temperature=0.07,
                concept_threshold=0.5,
                images_per_group=None,
                regions_per_softmax=None,
                micro_batches=1,
                image_text_chunk=None,
                image_text_weight=1.0,
                distillation_weight=1.0,
                contrastive_weight=1.0,
                padding="invisible",
                regions_per_chunk=None,
                roi_align="auto",
            ),
            optimizer=dict(
                optimizer,
                learning_rate=1e-3,
                warmup_steps=20,
                weight_decay=0.01,
                no_decay_patterns=("bias$",),
                frozen_patterns=("norm", "^text/", "^logit_scale"),
            ),
            run=dict(run, num_steps=400, log_every=50, checkpoint_every=100),
        )
    )

    config.evaluation = dict(
        source="array_record",
        path="",
        split="",
        annotations="",
        class_split="scenes",
        vocabulary="",
        short_side=None,
        max_long_side=None,
        resize_method="bilinear_round",
        canvas_sizes=((96, 96),),
        batch_size=32,
        max_boxes=4,
        regions="ground_truth",
        localizer="",
        num_proposals=1000,
        pre_nms_topk=1000,
        proposal_nms_threshold=0.9,
        window_sides=(),
        embed_from="features",
        temperature=0.07,
        objectness="none",
        # Given boxes are all asked about, and none is in another's way.
        score_threshold=0.0,
        nms="hard",
        nms_threshold=1.0,
        soft_nms_sigma=0.5,
        soft_nms_prune=0.001,
        max_detections=100,
        regions_per_chunk=None,
        roi_align="auto",
        templates="plain",
        num_threads=2,
        fault_fraction=0.01,
    )
    return config


def scenes_detection() -> ml_collections.ConfigDict:
    """Localizer, RegionCLIP on its regions, detectors from three starts: 9 to 10 minutes."""
    config = scenes()
    config.job = "scenes_detection"
    evaluation = config.evaluation.to_dict()
    del config.evaluation
    # Less of each than alone, so that all of it stays under ten minutes.
    config.scenes.num_test = 300
    config.train_clip.run.num_steps = 1000
    config.num_labelled = 3000
    evaluation.update(
        batch_size=32,
        regions="localizer",
        num_proposals=50,
        pre_nms_topk=200,
        proposal_nms_threshold=0.7,
        score_threshold=0.001,
        nms_threshold=0.5,
    )
    data = dict(
        source="array_record",
        path="",
        split="",
        annotations="",
        classes="scenes_base",
        short_sides=None,
        max_long_side=None,
        jitter=None,
        resize_method="bilinear_round",
        canvas_sizes=((96, 96),),
        flip_probability=0.0,
        max_boxes=4,
        repeat_threshold=None,
        group_by_canvas=False,
        num_threads=2,
        num_workers=0,
        fault_fraction=0.01,
        fault_minimum=10,
    )
    optimizer = config.pretrain.optimizer.to_dict()
    run = config.pretrain.run.to_dict()

    config.train_localizer = dict(
        job="train_localizer",
        matmul_precision="default",
        # The small CLIP's own trunk, with a pyramid.
        localizer=dict(
            preset="scenes",
            init_from="",
            init_part="trunk",
            norm="frozen",
            dtype="auto",
            kept_activations="all",
        ),
        data=data,
        anchors=dict(
            anchors_per_image=64, positive_fraction=0.5, negative_below=0.3, positive_from=0.7
        ),
        optimizer=dict(optimizer, learning_rate=2e-3, frozen_patterns=("norm",)),
        run=dict(run, num_steps=150),
        evaluation=evaluation,
    )

    config.pretrain.regions.update(num_proposals=30, pre_nms_topk=200, proposal_nms_threshold=0.5)
    config.pretrain.run.num_steps = 350

    config.train_detector = dict(
        job="train_detector",
        matmul_precision="default",
        model=dict(preset="scenes", init_from="", dtype="auto", kept_activations="all"),
        data=data,
        detector=dict(
            localizer="",
            image_tower="pretrained",
            num_proposals=50,
            pre_nms_topk=200,
            proposal_nms_threshold=0.7,
            samples_per_image=16,
            positive_fraction=0.25,
            positive_iou=0.5,
            temperature=0.07,
            background_weight=0.2,
            focal_gamma=0.5,
            mask_size=None,
            vocabulary="",
            templates="plain",
            regions_per_chunk=None,
            roi_align="auto",
        ),
        optimizer=dict(optimizer, learning_rate=1e-3),
        run=dict(run, num_steps=90),
        evaluation=evaluation,
    )
    config.random_frozen_patterns = ("^text/", "^logit_scale")
    return config


RECIPES = {
    recipe.__name__: recipe
    for recipe in (scenes, scenes_detection, rn50_coco, rn50_cc3m, rn50x4_cc3m, vitb16_coco)
}


def get_config(recipe: str = "scenes") -> ml_collections.ConfigDict:
    if recipe not in RECIPES:
        raise ValueError(f"configs/pretrain.py: {recipe!r} is none of {sorted(RECIPES)}")
    return RECIPES[recipe]()
