"""One step of RegionCLIP pretraining, and its parts; random weights do not change the times."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.model_flops import count_model_flops
from benchmarks.random_weights import draw_weights, in_type
from benchmarks.text import made_up_tokens
from benchmarks.timing import Program, Work
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.patch_grid import PatchTowerConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.settings import PretrainObjective, ProposalSettings
from regionclip_jax.steps.pretrain_step import (
    Frozen,
    StudentEmbeddings,
    make_pretrain_step,
    name_regions,
    pretrain_losses,
)
from regionclip_jax.steps.train_state import TrainState, apply_gradients, create_train_state
from regionclip_jax.structures import ImageTextBatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="RN50", choices=sorted(PRESETS), metavar="NAME",
        help="preset of models/presets.py",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--regions", type=int, default=100, help="regions of an image")
    parser.add_argument("--concepts", type=int, default=4764)
    parser.add_argument("--chunk", type=int, default=25, help="regions embedded at once; 0: all")


def settings_of(num_regions: int, chunk: int | None) -> PretrainObjective:
    """Return the paper's objective with random boxes and one group of all images."""
    return PretrainObjective(
        proposals=ProposalSettings(num_proposals=num_regions),
        num_regions=num_regions,
        images_per_group=None,
        regions_per_chunk=chunk,
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """Inputs of a step and its parts."""

    model: CLIP
    variables: dict
    batch: ImageTextBatch
    boxes: jax.Array
    frozen: Frozen
    optimizer: optax.GradientTransformation
    state: TrainState
    settings: PretrainObjective


def build(args: argparse.Namespace) -> Setup:
    """Draw weights, images and boxes of the sizes in ``args``."""
    config = PRESETS[args.preset]
    dtype = jnp.dtype(args.dtype)
    variables = draw_weights(abstract_variables(config))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.images, args.height, args.width, 3), np.uint8)
    batch = ImageTextBatch(
        images=jnp.array(images),
        sizes=jnp.tile(jnp.array([[args.height, args.width]], jnp.int32), (args.images, 1)),
        tokens=jnp.array(
            made_up_tokens(args.images, config.text.context_length, config.text.vocab_size)
        ),
        mask=jnp.ones(args.images, bool),
    )
    concepts = jnp.array(rng.standard_normal((args.concepts, config.embed_dim)), jnp.float32)
    patterns = ["norm", "visual/stem/", "visual/layer1/", "^text/", "^logit_scale"]
    if isinstance(config.image, PatchTowerConfig):
        patterns = ["visual/patch_embedding", "^text/", "^logit_scale"]
    optimizer = optax.sgd(0.002, momentum=0.9)
    return Setup(
        model=CLIP(config, dtype=dtype),
        variables=variables,
        batch=batch,
        boxes=random_boxes(jax.random.key(0), batch.sizes, args.regions, 8),
        frozen=Frozen(
            teacher=in_type(variables, dtype), teacher_concepts=concepts, student_concepts=concepts
        ),
        optimizer=optimizer,
        state=create_train_state(variables, patterns, optimizer),
        settings=settings_of(args.regions, args.chunk or None),
    )


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    setup = build(args)
    yield from parts(setup, runner)
    yield whole_step(setup, runner)


def whole_step(setup: Setup, runner=None) -> Work:
    """Return the row of teacher, student, losses and update, with a donated state as in a job."""
    step = Program(
        make_pretrain_step(setup.model, setup.model, setup.optimizer, setup.settings, seed=0),
        # A copy, because a donated state cannot be used by the other rows.
        jax.tree.map(jnp.copy, setup.state), setup.frozen, setup.batch,
        carries_first=True,
    )  # fmt: skip
    counted = dataclasses.replace(setup.settings, regions_per_chunk=None, roi_align_impl="gather")
    return Work(
        "whole step (teacher, student, losses, update)",
        step,
        _torch_step(setup, runner) if runner else {},
        items=len(setup.batch.images),
        unit="images",
        model_flops=lambda: count_model_flops(
            make_pretrain_step(setup.model, setup.model, setup.optimizer, counted, seed=0),
            setup.state, setup.frozen, setup.batch,
        ),
    )  # fmt: skip


def parts(setup: Setup, runner=None) -> Iterator[Work]:
    """Yield rows of the parts of a step, each as its own program."""
    model, variables, batch, boxes = setup.model, setup.variables, setup.batch, setup.boxes
    theirs = _torch_parts(setup, runner) if runner else {}
    sizes = batch.sizes
    pixels = normalize_images(batch.images, sizes, model.config.preprocessing)

    def program(name: str, function: Callable, *arguments: Any) -> Work:
        return Work(name, Program(function, *arguments), theirs.get(name, {}))

    def find_features(variables, pixels):
        return model.apply(variables, pixels, sizes, method=model.image_features)

    yield program("image features, forward", find_features, variables, pixels)
    features = jax.jit(find_features)(variables, pixels)

    def align(features, boxes):
        # The mean, so that the crops need not be stored. PyTorch stores them: ``ops`` compares.
        crops = roi_align(features.map, boxes, model.crop_size, 1 / model.stride)
        return crops.mean((2, 3))

    yield program("RoIAlign, forward", align, features, boxes)
    if not isinstance(model.config.image, PatchTowerConfig):
        shape = (boxes.shape[1], model.crop_size, model.crop_size, features.map.shape[-1])
        crops = jax.random.normal(jax.random.key(1), shape, features.map.dtype)

        def embed_crops(variables, crops):
            return model.apply(variables, crops, method=model.embed_crops)

        name = f"layer4 and pool of {len(crops)} crops, forward"
        yield program(name, embed_crops, variables, crops)

    def embed(variables, features, boxes, differentiated=False):
        return encode_regions(
            model, variables, features, boxes,
            regions_per_chunk=setup.settings.regions_per_chunk, differentiated=differentiated,
        )  # fmt: skip

    yield program("regions (RoIAlign, layer4, pool), forward", embed, variables, features, boxes)
    gradient = jax.grad(
        lambda v, f, b: embed(v, f, b, differentiated=True).sum(), argnums=(0, 1), allow_int=True
    )
    yield program("regions, forward and backward", gradient, variables, features, boxes)

    def embed_texts(variables, tokens):
        return model.apply(variables, tokens, method=model.encode_text)

    yield program("captions, forward", embed_texts, variables, batch.tokens)
    yield program("losses, forward and backward", *_losses(setup))

    def update(state, gradients):
        return apply_gradients(state, gradients, setup.optimizer)

    gradients = jax.tree.map(jnp.ones_like, setup.state.params)
    yield program("update", update, setup.state, gradients)


def _losses(setup: Setup) -> tuple[Callable, StudentEmbeddings, jax.Array, Frozen]:
    """Return the gradient of the three losses with respect to embeddings, and its arguments."""
    (num, regions), dim = setup.boxes.shape[:2], setup.model.config.embed_dim
    keys = jax.random.split(jax.random.key(2), 4)
    embeddings = StudentEmbeddings(
        jax.random.normal(keys[0], (num, regions, dim)),
        jax.random.normal(keys[1], (num, dim)),
        jax.random.normal(keys[2], (num, dim)),
    )
    teachers = jax.random.normal(keys[3], (num, regions, dim))

    def gradient(embeddings, teachers, frozen):
        labels = name_regions(teachers, jnp.ones((num, regions), bool), frozen, setup.settings)

        def total(embeddings):
            mask = jnp.ones(num, bool)
            losses = pretrain_losses(embeddings, mask, labels, frozen, setup.settings)
            return sum(losses.values())

        return jax.grad(total)(embeddings)

    return gradient, embeddings, teachers, setup.frozen


def _torch_parts(setup: Setup, runner) -> dict[str, dict]:
    """Return PyTorch's columns by the names of our rows."""
    import torch

    from benchmarks.torch_clip import torch_clip

    config, variables = setup.model.config, setup.variables
    model = torch_clip(config, variables, runner, canvas=setup.batch.images.shape[1:3])
    images, tokens = runner.tensor(setup.batch.images), runner.tensor(setup.batch.tokens).long()
    boxes = runner.tensor(setup.boxes)
    with torch.no_grad(), runner.autocast():
        features = model.image_features(images)

    def forward(function, *arguments):
        return runner.columns(lambda compile_: functools.partial(compile_(function), *arguments))

    columns = {
        "image features, forward": forward(model.image_features, images),
        "regions (RoIAlign, layer4, pool), forward": forward(model.encode_regions, features, boxes),
        "captions, forward": forward(model.encode_text, tokens),
    }
    if isinstance(config.image, ViTConfig):
        return columns
    # Like ours: gradients of layer4, the pool and the features; norms stay frozen.
    differentiated = torch_clip(config, variables, runner)
    parameters = [
        *differentiated.visual.layer4.parameters(),
        *differentiated.visual.attnpool.parameters(),
    ]
    for parameter in parameters:
        parameter.requires_grad_()

    def both_ways(compile_):
        encode, maps = compile_(differentiated.encode_regions), features.clone().requires_grad_()
        return lambda: torch.autograd.grad(
            encode(maps, boxes).sum(), [maps, *parameters], allow_unused=True
        )

    columns["regions, forward and backward"] = runner.columns(both_ways, gradients=True)
    return columns


def _torch_step(setup: Setup, runner) -> dict[str, Callable]:
    from benchmarks.torch_pretraining import make_step

    images, tokens = runner.tensor(setup.batch.images), runner.tensor(setup.batch.tokens).long()
    concepts = runner.tensor(setup.frozen.student_concepts)
    paths = {path: leaf.ndim for path, leaf in flatten(setup.state.params).items()}
    settings = dataclasses.replace(setup.settings, regions_per_chunk=None)

    def step(compile_):
        update = make_step(
            setup.model.config, setup.variables, paths, concepts, settings, runner, compile_,
            canvas=setup.batch.images.shape[1:3],
        )  # fmt: skip
        return lambda: update(images, tokens)

    return runner.columns(step, gradients=True)
