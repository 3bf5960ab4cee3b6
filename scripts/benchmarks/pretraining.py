"""One step of RegionCLIP pretraining, and its parts. Weights are random: they change no time."""

import argparse
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.model_flops import count_model_flops
from benchmarks.random_weights import draw_weights
from benchmarks.text import made_up_tokens
from benchmarks.timing import Work
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.normalization import normalize_for_clip
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.steps.pretrain_step import Frozen, PretrainSettings, make_pretrain_step
from regionclip_jax.steps.train_state import create_train_state
from regionclip_jax.structures import ImageTextBatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="RN50", choices=sorted(PRESETS))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--regions", type=int, default=100, help="of an image")
    parser.add_argument("--concepts", type=int, default=4764)
    parser.add_argument("--chunk", type=int, default=25, help="regions of an image at once; 0: all")


def settings_of(num_regions: int, chunk: int | None) -> PretrainSettings:
    """Those of the paper's recipe, on random boxes, with one group of all pictures."""
    return PretrainSettings(
        num_proposals=num_regions, num_regions=num_regions, pre_nms_topk=1000,
        proposal_nms_threshold=0.5, box_grid=8, box_sides=None, temperature=0.01,
        teacher_temperature=0.01, concept_threshold=0.1, images_per_group=None,
        image_text_weight=1.0, distillation_weight=1.0, contrastive_weight=1.0,
        padding="invisible", regions_per_chunk=chunk, regions_per_softmax=None, roi_align="auto",
        micro_batches=1, seed=0,
    )  # fmt: skip


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    config = PRESETS[args.preset]
    model = CLIP(config, dtype=jnp.dtype(args.dtype))
    variables = draw_weights(abstract_variables(config))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.images, args.height, args.width, 3), np.uint8)
    batch = ImageTextBatch(
        images=jnp.array(images),
        sizes=jnp.tile(jnp.array([[args.height, args.width]], jnp.int32), (args.images, 1)),
        tokens=jnp.array(made_up_tokens(args.images, config.context_length, config.vocab_size)),
        mask=jnp.ones(args.images, bool),
    )
    concepts = jnp.array(rng.standard_normal((args.concepts, config.embed_dim)), jnp.float32)
    patterns = ["norm", "visual/stem/", "visual/layer1/", "^text/", "^logit_scale"]
    if config.is_vit:
        patterns = ["visual/patch_embedding", "^text/", "^logit_scale"]
    optimizer = optax.sgd(0.002, momentum=0.9)
    state = create_train_state(variables, patterns, optimizer)
    boxes = random_boxes(jax.random.key(0), batch.sizes, args.regions, 8)

    theirs = {}
    if runner:
        theirs = _torch_works(config, variables, state, batch, boxes, concepts, args, runner)
    yield from _parts(model, variables, batch, boxes, args.chunk or None, theirs)

    frozen = Frozen(teacher=variables, teacher_concepts=concepts, student_concepts=concepts)
    settings = settings_of(args.regions, args.chunk or None)
    step = jax.jit(make_pretrain_step(model, model, optimizer, settings))
    counted = dataclasses.replace(settings, regions_per_chunk=None, roi_align="gather")
    yield Work(
        "whole step (teacher, student, losses, update)",
        lambda: step(state, frozen, batch),
        theirs.get("step", {}),
        items=args.images,
        unit="images",
        model_flops=count_model_flops(
            make_pretrain_step(model, model, optimizer, counted), state, frozen, batch
        ),
    )


def _parts(model, variables, batch, boxes, chunk: int | None, theirs: dict) -> Iterator[Work]:
    sizes, pixels = batch.sizes, normalize_for_clip(batch.images, batch.sizes)
    features = jax.jit(lambda v, p: model.apply(v, p, sizes, method=model.image_features))
    name = "image features, forward"
    yield Work(name, lambda: features(variables, pixels), theirs.get(name, {}))
    image_features = features(variables, pixels)

    def embed(variables, features, boxes, differentiated=False):
        return encode_regions(
            model, variables, features, boxes,
            regions_per_chunk=chunk, differentiated=differentiated,
        )  # fmt: skip

    regions = jax.jit(embed)
    gradient = jax.jit(
        jax.grad(
            lambda v, f, b: embed(v, f, b, differentiated=True).sum(),
            argnums=(0, 1),
            allow_int=True,
        )
    )
    texts = jax.jit(lambda v, t: model.apply(v, t, method=model.encode_text))

    def align(implementation):
        # The crops' mean, so that they need not be kept. PyTorch keeps them: ``ops`` compares.
        return jax.jit(
            lambda f, b: roi_align(
                f, b, model.crop_size, 1 / model.stride, implementation=implementation
            ).mean((2, 3))
        )

    align_gather, align_matmul = align("gather"), align("matmul")
    ours = {
        "RoIAlign, gather": lambda: align_gather(image_features.map, boxes),
        "RoIAlign, matmul": lambda: align_matmul(image_features.map, boxes),
        "regions (RoIAlign, layer4, pool), forward": lambda: regions(
            variables, image_features, boxes
        ),
        "regions, forward and backward": lambda: gradient(variables, image_features, boxes),
        "captions, forward": lambda: texts(variables, batch.tokens),
    }
    for name, work in ours.items():
        yield Work(name, work, theirs.get(name, {}))


def _torch_works(config, variables, state, batch, boxes, concepts, args, runner) -> dict[str, dict]:
    """Columns by the names of our rows; that of the whole step is "step"."""
    import torch

    from benchmarks.torch_clip import torch_clip
    from benchmarks.torch_pretraining import make_step

    model = torch_clip(config, variables, runner)
    images, tokens = runner.tensor(batch.images), runner.tensor(batch.tokens).long()
    boxes, concepts = runner.tensor(boxes), runner.tensor(concepts)
    with torch.no_grad(), runner.autocast():
        features = model.image_features(images)
    # As ours: of layer4, the pool and the features; norms stay frozen.
    differentiated = torch_clip(config, variables, runner)
    parameters = [
        *differentiated.visual.layer4.parameters(),
        *differentiated.visual.attnpool.parameters(),
    ]
    for parameter in parameters:
        parameter.requires_grad_()

    def forward(function, *arguments):
        return runner.columns(lambda compile_: functools.partial(compile_(function), *arguments))

    def both_ways(compile_):
        encode, maps = compile_(differentiated.encode_regions), features.clone().requires_grad_()
        return lambda: torch.autograd.grad(
            encode(maps, boxes).sum(), [maps, *parameters], allow_unused=True
        )

    paths = {path: leaf.ndim for path, leaf in flatten(state.params).items()}
    settings = settings_of(args.regions, None)

    def step(compile_):
        update = make_step(config, variables, paths, concepts, settings, runner, compile_)
        return lambda: update(images, tokens)

    return {
        "image features, forward": forward(model.image_features, images),
        "regions (RoIAlign, layer4, pool), forward": forward(model.encode_regions, features, boxes),
        "regions, forward and backward": runner.columns(both_ways, gradients=True),
        "captions, forward": forward(model.encode_text, tokens),
        "step": runner.columns(step, gradients=True),
    }
