"""Zero-shot detection with a pyramid's proposals, and its stages. Weights are random."""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.model_flops import count_model_flops
from benchmarks.random_weights import draw_weights
from benchmarks.timing import Work
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.concept_classifier import class_probabilities
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.models.localizer_presets import LOCALIZER_PRESETS
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
from regionclip_jax.structures import DetectionBatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="RN50", choices=sorted(PRESETS))
    parser.add_argument(
        "--localizer", default="rn50_fpn", choices=("rn50_fpn", "small"),
        help="as models/localizer_presets.py names them",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800, help="a multiple of 32, as the width")
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--regions", type=int, default=1000, help="of an image")
    parser.add_argument("--classes", type=int, default=65)
    parser.add_argument("--chunk", type=int, default=25, help="regions of an image at once; 0: all")


def settings_of(chunk: int | None, implementation: str = "auto") -> DetectSettings:
    """The reference's, but for objectness: random logits are negative, and would have no scores."""
    return DetectSettings(regions_per_chunk=chunk, objectness="sigmoid", roi_align=implementation)


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    config, dtype = PRESETS[args.preset], jnp.dtype(args.dtype)
    model = CLIP(config, dtype=dtype)
    localizer = Localizer(LOCALIZER_PRESETS[args.localizer], dtype)
    rng = np.random.default_rng(0)
    shape = (args.images, args.height, args.width, 3)
    batch = DetectionBatch(
        images=jnp.array(rng.integers(0, 256, shape, np.uint8)),
        sizes=jnp.tile(jnp.array([[args.height, args.width]], jnp.int32), (args.images, 1)),
        boxes=jnp.zeros((args.images, 1, 4)),
        classes=jnp.zeros((args.images, 1), jnp.int32),
        box_mask=jnp.zeros((args.images, 1), bool),
        image_ids=jnp.arange(args.images, dtype=jnp.int32),
        scales=jnp.ones((args.images, 2)),
        mask=jnp.ones(args.images, bool),
    )
    variables = DetectorVariables(
        draw_weights(abstract_variables(config)),
        jnp.array(rng.standard_normal((args.classes, config.embed_dim)), jnp.float32),
        draw_weights(abstract_localizer(localizer.config)),
    )
    boxes = random_boxes(jax.random.key(0), batch.sizes, args.regions, 8)
    shape = (args.images, args.regions, config.embed_dim)
    embeddings = jnp.array(rng.standard_normal(shape), jnp.float32)
    chunk, proposals = args.chunk or None, ProposalSettings(post_nms_topk=args.regions)

    theirs = {}
    if runner:
        settings = settings_of(None)
        theirs = _torch_works(
            config, localizer.config, variables, batch.images, boxes, embeddings, settings,
            proposals, runner,
        )  # fmt: skip
    stages = _stages(model, localizer, variables, batch, boxes, embeddings, chunk, proposals)
    for name, work in stages:
        yield Work(name, work, theirs.get(name, {}))

    find_regions = proposals_of(localizer, proposals)
    step = jax.jit(make_predict_step(model, settings_of(chunk), find_regions))
    counted = make_predict_step(model, settings_of(None, "gather"), find_regions)
    yield Work(
        "all, from canvases to detections",
        lambda: step(variables, batch),
        theirs.get("all", {}),
        items=args.images,
        unit="images",
        model_flops=count_model_flops(counted, variables, batch),
    )


def _stages(model, localizer, variables, batch, boxes, embeddings, chunk, proposals):
    """Names, and what to time."""
    images, sizes = batch.images, batch.sizes

    @jax.jit
    def pyramid(variables):
        return localizer.apply(variables, images, sizes, method=localizer.feature_levels)

    @jax.jit
    def find(variables):
        return propose(
            localizer, variables, images, sizes,
            pre_nms_topk=proposals.pre_nms_topk,
            post_nms_topk=proposals.post_nms_topk,
            nms_threshold=proposals.nms_threshold,
        )  # fmt: skip

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
        return encode_regions(model, clip, image_features, boxes, regions_per_chunk=chunk)

    settings = settings_of(chunk)

    @jax.jit
    def choose(embeddings, classes):
        return select_detections(
            boxes,
            class_probabilities(embeddings, classes, settings.temperature),
            jnp.ones(boxes.shape[:2], bool),
            sizes,
            score_threshold=settings.score_threshold,
            nms=settings.nms,
            nms_threshold=settings.nms_threshold,
            max_detections=settings.max_detections,
        )

    clip = variables.clip
    yield "localizer: trunk and pyramid", lambda: pyramid(variables.localizer)
    yield "localizer: all, to proposals", lambda: find(variables.localizer)
    yield "image features (to res4)", lambda: features(clip)
    image_features = features(clip)
    yield "RoIAlign", lambda: crops(image_features)
    yield "regions: RoIAlign, layer4, pool", lambda: embed(clip, image_features)
    yield (
        "classifier, softmax, NMS per class",
        lambda: choose(embeddings, variables.class_embeddings),
    )


def _torch_works(
    config, localizer_config, variables, images, boxes, embeddings, settings, proposals, runner
) -> dict[str, dict]:
    """Columns by the names of our rows; that of the whole is "all"."""
    import torch

    from benchmarks import torch_detection as detection
    from benchmarks.torch_clip import torch_clip
    from benchmarks.torch_localizer import select_proposals, torch_anchors, torch_localizer

    clip = torch_clip(config, variables.clip, runner)
    localizer = torch_localizer(localizer_config, variables.localizer, runner)
    height, width = images.shape[1:3]
    anchors = torch_anchors(localizer_config, height, width, runner)
    images, boxes, embeddings, classes = map(
        runner.tensor, (images, boxes, embeddings, variables.class_embeddings)
    )
    with torch.no_grad(), runner.autocast():
        features = clip.image_features(images)

    def find(compile_):
        outputs = compile_(localizer.outputs)
        return lambda: select_proposals(
            *outputs(images), anchors, height, width,
            pre_nms_topk=proposals.pre_nms_topk,
            post_nms_topk=proposals.post_nms_topk,
            nms_threshold=proposals.nms_threshold,
        )  # fmt: skip

    def choose(_):
        return lambda: detection.choose(
            boxes,
            detection.class_probabilities(embeddings, classes, settings.temperature),
            settings,
        )

    def detect(compile_):
        call = detection.make_detect(
            clip, localizer, anchors, classes, settings, proposals, compile_
        )
        return lambda: call(images)

    def network(function, *arguments):
        return lambda compile_: functools.partial(compile_(function), *arguments)

    made = {
        "localizer: trunk and pyramid": network(localizer.feature_levels, images),
        "localizer: all, to proposals": find,
        "image features (to res4)": network(clip.image_features, images),
        "regions: RoIAlign, layer4, pool": network(clip.encode_regions, features, boxes),
        "classifier, softmax, NMS per class": choose,
        "all": detect,
    }
    return {name: runner.columns(make) for name, make in made.items()}
