"""Times one pretraining step, or the detection of a picture, and their parts, in one run.

  python scripts/benchmark.py pretrain --images=2 --height=576 --width=1024 --regions=100
  python scripts/benchmark.py detect --images=1 --height=800 --width=1216 --regions=1000

Weights are random: they change no time. The first call of everything (compilation) is not counted;
the median of the repeats is printed. Compare lines of one run, not seconds of two machines.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from regionclip_jax.models.clip import CLIP, encode_regions, init_variables
from regionclip_jax.models.concept_classifier import class_probabilities
from regionclip_jax.models.localizer import Localizer, LocalizerConfig, init_localizer, propose
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.detections import select_detections
from regionclip_jax.ops.normalization import normalize_for_clip
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    DetectSettings,
    ProposalSettings,
    make_predict_step,
    proposals_of,
)
from regionclip_jax.steps.pretrain_step import Frozen, PretrainSettings, make_pretrain_step
from regionclip_jax.steps.train_state import create_train_state
from regionclip_jax.structures import DetectionBatch, ImageTextBatch


def seconds(work, repeats: int) -> float:
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pretrain", "detect"))
    parser.add_argument("--preset", default="RN50", choices=sorted(PRESETS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--regions", type=int, default=1000)
    parser.add_argument("--concepts", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=25, help="regions of an image at once")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    size = f"{args.images} x {args.height} x {args.width} pixels"
    counts = f"{args.regions} regions an image, {args.concepts} concepts"
    print(f"{args.preset} {args.dtype} on {jax.devices()[0]}, {size}, {counts}")
    rows = {"pretrain": pretraining, "detect": detection}[args.what](args)
    for name, work in rows.items():
        print(f"  {name:48s} {seconds(work, args.repeats):8.3f} s", flush=True)


def pretraining(args) -> dict:
    """Name -> what to time."""
    config = PRESETS[args.preset]
    model = CLIP(config, dtype=jnp.dtype(args.dtype))
    variables = init_variables(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    sizes = jnp.tile(jnp.array([[args.height, args.width]], jnp.int32), (args.images, 1))
    shape = (args.images, args.height, args.width, 3)
    tokens = np.zeros((args.images, 77), np.int32)
    tokens[:, :10] = rng.integers(1, 49406, (args.images, 10))
    tokens[:, 10] = 49407
    batch = ImageTextBatch(
        images=jnp.array(rng.integers(0, 256, shape, np.uint8)),
        sizes=sizes,
        tokens=jnp.array(tokens),
        mask=jnp.ones(args.images, bool),
    )
    concepts = jnp.array(rng.standard_normal((args.concepts, config.embed_dim)), jnp.float32)
    settings = PretrainSettings(
        num_proposals=300, num_regions=args.regions, pre_nms_topk=1000, proposal_nms_threshold=0.5,
        box_grid=8, box_sides=None, temperature=0.01, teacher_temperature=0.01,
        concept_threshold=0.1, images_per_group=None, image_text_weight=1.0,
        distillation_weight=1.0, contrastive_weight=1.0, padding="invisible",
        regions_per_chunk=args.chunk, regions_per_softmax=None, roi_align="auto",
        micro_batches=1, seed=0,
    )  # fmt: skip
    optimizer = optax.sgd(0.002, momentum=0.9)
    patterns = ["norm", "visual/stem/", "visual/layer1/", "^text/", "^logit_scale"]
    if config.is_vit:
        patterns = ["visual/patch_embedding", "^text/", "^logit_scale"]
    frozen = Frozen(teacher=variables, teacher_concepts=concepts, student_concepts=concepts)
    step = jax.jit(make_pretrain_step(model, model, optimizer, settings))
    state = create_train_state(variables, patterns, optimizer)

    pixels = normalize_for_clip(batch.images, sizes)
    boxes = random_boxes(jax.random.key(0), sizes, args.regions, 8)
    features = jax.jit(lambda v, p: model.apply(v, p, sizes, method=model.image_features))
    image_features = features(variables, pixels)
    regions = jax.jit(lambda v, f, b: encode_regions(model, v, f, b, regions_per_chunk=args.chunk))
    region_gradient = jax.jit(
        jax.grad(
            lambda v, f, b: encode_regions(
                model, v, f, b, regions_per_chunk=args.chunk, differentiated=True
            ).sum(),
            argnums=(0, 1),
            allow_int=True,
        )
    )
    texts = jax.jit(lambda v, t: model.apply(v, t, method=model.encode_text))

    def align(implementation):
        return jax.jit(
            lambda f, b: roi_align(
                f, b, model.crop_size, 1 / model.stride, implementation=implementation
            ).mean((2, 3))
        )

    align_gather, align_matmul = align("gather"), align("matmul")
    return {
        "image features, forward": lambda: features(variables, pixels),
        "RoIAlign, gather": lambda: align_gather(image_features.map, boxes),
        "RoIAlign, matmul": lambda: align_matmul(image_features.map, boxes),
        "regions (RoIAlign, layer4, pool), forward": lambda: regions(
            variables, image_features, boxes
        ),
        "regions, forward and backward": lambda: region_gradient(variables, image_features, boxes),
        "captions, forward": lambda: texts(variables, batch.tokens),
        "whole step (teacher, student, losses, update)": lambda: step(state, frozen, batch),
    }


def detection(args) -> dict:
    """The stages of zero-shot detection with a pyramid's proposals; name -> what to time."""
    config, localizer_config = PRESETS[args.preset], PYRAMID
    model, localizer = CLIP(config, dtype=jnp.dtype(args.dtype)), Localizer(localizer_config)
    clip = init_variables(config, jax.random.key(0))
    localizer_variables = init_localizer(localizer_config, jax.random.key(1))
    rng = np.random.default_rng(0)
    shape = (args.images, args.height, args.width, 3)
    images = jnp.array(rng.integers(0, 256, shape, np.uint8))
    sizes = jnp.tile(jnp.array([[args.height, args.width]], jnp.int32), (args.images, 1))
    classes = jnp.array(rng.standard_normal((args.concepts, config.embed_dim)), jnp.float32)
    boxes = random_boxes(jax.random.key(0), sizes, args.regions, 8)
    limits = dict(pre_nms_topk=1000, post_nms_topk=args.regions, nms_threshold=0.9)
    settings = DetectSettings(regions_per_chunk=args.chunk, objectness="sigmoid")
    batch = DetectionBatch(
        images=images,
        sizes=sizes,
        boxes=jnp.zeros((args.images, 1, 4)),
        classes=jnp.zeros((args.images, 1), jnp.int32),
        box_mask=jnp.zeros((args.images, 1), bool),
        image_ids=jnp.arange(args.images, dtype=jnp.int32),
        scales=jnp.ones((args.images, 2)),
        mask=jnp.ones(args.images, bool),
    )
    find_regions = proposals_of(localizer, ProposalSettings(post_nms_topk=args.regions))
    everything = jax.jit(make_predict_step(model, settings, find_regions))
    variables = DetectorVariables(clip, classes, localizer_variables)

    @jax.jit
    def pyramid(variables):
        return localizer.apply(variables, images, sizes, method=localizer.feature_levels)

    @jax.jit
    def proposals(variables):
        return propose(localizer, variables, images, sizes, **limits)

    @jax.jit
    def features(clip):
        pixels = normalize_for_clip(images, sizes)
        return model.apply(clip, pixels, sizes, method=model.image_features)

    @jax.jit
    def crops(image_features):
        # Their mean, so that a thousand crops need not be kept.
        crops = roi_align(image_features.map, boxes, model.crop_size, 1 / model.stride)
        return crops.mean((2, 3))

    @jax.jit
    def embed(clip, image_features):
        return encode_regions(model, clip, image_features, boxes, regions_per_chunk=args.chunk)

    @jax.jit
    def choose(embeddings, classes):
        return select_detections(
            boxes,
            class_probabilities(embeddings, classes, 0.01),
            jnp.ones(boxes.shape[:2], bool),
            sizes,
            score_threshold=0.001,
            nms="hard",
            nms_threshold=0.5,
            max_detections=100,
        )

    image_features = features(clip)
    embeddings = jnp.array(
        rng.standard_normal((args.images, args.regions, config.embed_dim)), jnp.float32
    )
    return {
        "localizer: trunk and pyramid": lambda: pyramid(localizer_variables),
        "localizer: all, to proposals": lambda: proposals(localizer_variables),
        "image features (to res4)": lambda: features(clip),
        "RoIAlign": lambda: crops(image_features),
        "regions: RoIAlign, layer4, pool": lambda: embed(clip, image_features),
        "classifier, softmax, NMS per class": lambda: choose(embeddings, classes),
        "all, from canvases to detections": lambda: everything(variables, batch),
    }


# The reference's ResNet50 with a feature pyramid.
PYRAMID = LocalizerConfig(blocks=(3, 4, 6, 3), pyramid_channels=256)


if __name__ == "__main__":
    main()
