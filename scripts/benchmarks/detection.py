"""Zero-shot detection with proposals of a feature pyramid, and its stages; random weights."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.model_flops import count_model_flops
from benchmarks.random_weights import draw_weights, in_type
from benchmarks.timing import Program, Work
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.concept_classifier import class_probabilities
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.ops.detections import select_detections
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.settings import DetectionSettings, ProposalSettings
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    make_predict_step,
    proposals_of,
)
from regionclip_jax.structures import DetectionBatch


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the presets of a model that proposes regions."""
    parser.add_argument(
        "--preset", default="RN50", choices=sorted(PRESETS), metavar="NAME",
        help="preset of models/presets.py",
    )  # fmt: skip
    parser.add_argument(
        "--localizer", default="rn50_fpn", choices=("rn50_fpn", "small"),
        help="localizer preset of models/presets.py",
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800, help="multiple of 32, like the width")
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--regions", type=int, default=1000, help="regions of an image")
    parser.add_argument("--classes", type=int, default=65)
    parser.add_argument("--chunk", type=int, default=25, help="regions embedded at once; 0: all")


def settings_of(chunk: int | None, implementation: str = "auto") -> DetectionSettings:
    """Return the reference's settings, with sigmoid objectness: random logits are negative."""
    return DetectionSettings(
        regions_per_chunk=chunk, objectness="sigmoid", roi_align_impl=implementation
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """Inputs of detection and its stages."""

    model: CLIP
    localizer: Localizer
    variables: DetectorVariables
    batch: DetectionBatch
    boxes: jax.Array
    embeddings: jax.Array
    proposals: ProposalSettings
    chunk: int | None


def build(args: argparse.Namespace) -> Setup:
    """Draw weights, images, boxes and embeddings of the sizes in ``args``."""
    config, dtype = PRESETS[args.preset], jnp.dtype(args.dtype)
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
    shape = (args.images, args.regions, config.embed_dim)
    return Setup(
        model=CLIP(config, dtype=dtype),
        localizer=localizer,
        variables=DetectorVariables(
            in_type(draw_weights(abstract_variables(config)), dtype),
            jnp.array(rng.standard_normal((args.classes, config.embed_dim)), jnp.float32),
            in_type(draw_weights(abstract_localizer(localizer.config)), dtype),
        ),
        batch=batch,
        boxes=random_boxes(jax.random.key(0), batch.sizes, args.regions, 8),
        embeddings=jnp.array(rng.standard_normal(shape), jnp.float32),
        proposals=ProposalSettings(num_proposals=args.regions),
        chunk=args.chunk or None,
    )


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    setup = build(args)
    theirs = torch_columns(setup, runner) if runner else {}
    yield from stages(setup, theirs)
    yield whole(setup, theirs)


def whole(setup: Setup, theirs: dict[str, dict]) -> Work:
    """Return the row of the whole detection, from canvases to detections, as one program."""
    find_regions = proposals_of(setup.localizer, setup.proposals)
    step = make_predict_step(setup.model, settings_of(setup.chunk), find_regions)
    counted = make_predict_step(setup.model, settings_of(None, "gather"), find_regions)
    return Work(
        "all, from canvases to detections",
        Program(step, setup.variables, setup.batch),
        theirs.get("all", {}),
        items=len(setup.batch.images),
        unit="images",
        model_flops=lambda: count_model_flops(counted, setup.variables, setup.batch),
    )


def stages(setup: Setup, theirs: dict[str, dict]) -> Iterator[Work]:
    """Yield rows of the stages of detection, each as its own program."""
    model, localizer, boxes = setup.model, setup.localizer, setup.boxes
    images, sizes = setup.batch.images, setup.batch.sizes
    clip, settings = setup.variables.clip, settings_of(setup.chunk)

    def program(name: str, function: Callable, *arguments: Any) -> Work:
        return Work(name, Program(function, *arguments), theirs.get(name, {}))

    def pyramid(variables, images):
        return localizer.apply(variables, images, sizes, method=localizer.feature_levels)

    def find(variables, images):
        return propose(localizer, variables, images, sizes, setup.proposals)

    def features(clip, images):
        pixels = normalize_images(images, sizes, model.config.preprocessing)
        return model.apply(clip, pixels, sizes, method=model.image_features)

    def crops(image_features, boxes):
        # The mean, so that a thousand crops need not be stored.
        crops = roi_align(image_features.map, boxes, model.crop_size, 1 / model.stride)
        return crops.mean((2, 3))

    def embed(clip, image_features, boxes):
        return encode_regions(model, clip, image_features, boxes, regions_per_chunk=setup.chunk)

    def choose(boxes, embeddings, classes):
        return select_detections(
            boxes,
            class_probabilities(embeddings, classes, settings.temperature),
            jnp.ones(boxes.shape[:2], bool),
            sizes,
            score_threshold=settings.score_threshold,
            nms=settings.nms,
            max_detections=settings.max_detections,
        )

    localizer_variables = setup.variables.localizer
    yield program("localizer: trunk and pyramid", pyramid, localizer_variables, images)
    yield program("localizer: all, to proposals", find, localizer_variables, images)
    yield program("image features (to res4)", features, clip, images)
    image_features = jax.jit(features)(clip, images)
    yield program("RoIAlign", crops, image_features, boxes)
    yield program("regions: RoIAlign, layer4, pool", embed, clip, image_features, boxes)
    classes = setup.variables.class_embeddings
    yield program("classifier, softmax, NMS per class", choose, boxes, setup.embeddings, classes)


def torch_columns(setup: Setup, runner) -> dict[str, dict]:
    """Return PyTorch's columns by the names of our rows; the whole detection is "all"."""
    import torch

    from benchmarks import torch_detection as detection
    from benchmarks.torch_clip import torch_clip
    from benchmarks.torch_localizer import select_proposals, torch_anchors, torch_localizer

    variables, proposals, settings = setup.variables, setup.proposals, settings_of(None)
    height, width = setup.batch.images.shape[1:3]
    clip = torch_clip(setup.model.config, variables.clip, runner, canvas=(height, width))
    localizer = torch_localizer(setup.localizer.config, variables.localizer, runner)
    anchors = torch_anchors(setup.localizer.config, height, width, runner)
    images, boxes, embeddings, classes = map(
        runner.tensor,
        (setup.batch.images, setup.boxes, setup.embeddings, variables.class_embeddings),
    )
    with torch.no_grad(), runner.autocast():
        features = clip.image_features(images)

    def find(compile_):
        outputs = compile_(localizer.outputs)
        return lambda: select_proposals(
            *outputs(images), anchors, height, width,
            pre_nms_topk=proposals.pre_nms_topk,
            num_proposals=proposals.num_proposals,
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
