"""RoIAlign and the suppressions by themselves, at the sizes they have in the paper's recipes."""

import argparse
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Work
from regionclip_jax.ops.nms import nms, nms_per_class
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.ops.soft_nms import soft_nms_per_class

_STRIDE = 16
_PER_CLASS = {"score_threshold": 0.001, "max_outputs": 100}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800, help="of the canvas; cells are 16 x 16")
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--crop", type=int, default=14, help="side of a crop, in cells")
    parser.add_argument("--regions", type=int, nargs="+", default=[100, 1000], help="an image")
    parser.add_argument("--candidates", type=int, default=12_000, help="boxes before NMS")
    parser.add_argument("--kept", type=int, default=2_000, help="boxes after NMS")
    parser.add_argument("--scored", type=int, default=1_000, help="boxes before NMS per class")
    parser.add_argument("--classes", type=int, default=65)


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    for num_regions in args.regions:
        yield from _align(args, num_regions, runner)
    yield from _suppress(args, runner)


def _align(args, num_regions: int, runner) -> Iterator[Work]:
    rng = np.random.default_rng(0)
    cells = args.height // _STRIDE, args.width // _STRIDE
    dtype = jnp.dtype(args.dtype)
    features = jnp.array(rng.standard_normal((args.images, *cells, args.channels)), dtype)
    sizes = jnp.tile(jnp.array([[args.height, args.width]], jnp.int32), (args.images, 1))
    boxes = random_boxes(jax.random.key(0), sizes, num_regions, 8)
    theirs = {"forward": {}, "both ways": {}}
    if runner:
        theirs = _torch_align(args.crop, features, boxes, runner)
    for implementation in ("gather", "matmul", "matmul_rows"):
        forward, both = _our_align(args.crop, implementation)
        for how, call in (("forward", forward), ("both ways", both)):
            yield Work(
                f"RoIAlign, {num_regions} regions, {implementation}, {how}",
                functools.partial(call, features, boxes),
                theirs[how],
            )


def _our_align(crop: int, implementation: str) -> tuple[Callable, Callable]:
    @jax.jit
    def forward(features, boxes):
        return roi_align(features, boxes, crop, 1 / _STRIDE, implementation=implementation)

    @jax.jit
    def both(features, boxes):
        # The crops come out too: their gradient alone does not need them.
        crops, backward = jax.vjp(lambda maps: forward(maps, boxes), features)
        return crops, backward(jnp.ones_like(crops))

    return forward, both


def _torch_align(crop: int, features, boxes, runner) -> dict[str, dict]:
    import torch
    from torchvision.ops import roi_align as their_align

    dtype = torch.bfloat16 if runner.is_bfloat16 else torch.float32
    # torchvision's kernel wants the channels first in memory.
    maps = runner.tensor(features.astype(jnp.float32)).to(dtype).permute(0, 3, 1, 2).contiguous()
    boxes = list(runner.tensor(boxes))
    differentiated = maps.clone().requires_grad_()

    def forward(maps=maps):
        return their_align(maps, boxes, crop, 1 / _STRIDE, sampling_ratio=0, aligned=True)

    def both():
        crops = forward(differentiated)
        return torch.autograd.grad(crops, differentiated, torch.ones_like(crops))

    return {
        "forward": runner.columns(lambda _: forward),
        "both ways": runner.columns(lambda _: both, gradients=True),
    }


def _suppress(args, runner) -> Iterator[Work]:
    rng = np.random.default_rng(0)
    boxes = _overlapping_boxes(rng, args.candidates, args.height, args.width)
    scores = rng.standard_normal(args.candidates).astype(np.float32)
    shared = _overlapping_boxes(rng, args.scored, args.height, args.width)
    probabilities = _peaked_probabilities(rng, args.scored, args.classes)
    theirs = _torch_suppress(args, boxes, scores, shared, probabilities, runner) if runner else {}
    boxes, scores, shared, probabilities = map(jnp.array, (boxes, scores, shared, probabilities))
    all_boxes, all_shared = jnp.ones(len(boxes), bool), jnp.ones(len(shared), bool)
    outputs = min(args.kept, args.candidates)
    yield Work(
        f"NMS, {args.candidates} -> {outputs}",
        lambda: nms(boxes, scores, all_boxes, iou_threshold=0.7, max_outputs=outputs),
        theirs.get("nms", {}),
    )
    sizes = f"{args.scored} x {args.classes} -> {_PER_CLASS['max_outputs']}"
    yield Work(
        f"NMS per class, {sizes}",
        lambda: nms_per_class(shared, probabilities, all_shared, iou_threshold=0.5, **_PER_CLASS),
        theirs.get("per class", {}),
    )
    yield Work(
        f"soft-NMS per class, {sizes}",
        lambda: soft_nms_per_class(shared, probabilities, all_shared, **_PER_CLASS),
        theirs.get("soft", {}),
    )


def _torch_suppress(args, boxes, scores, shared, probabilities, runner) -> dict[str, dict]:
    from torchvision.ops import nms as their_nms

    from benchmarks import torch_ops

    boxes, scores, shared, probabilities = map(
        runner.tensor, (boxes, scores, shared, probabilities)
    )
    found = {
        "nms": lambda: their_nms(boxes, scores, 0.7)[: args.kept],
        "per class": lambda: torch_ops.nms_per_class(
            shared, probabilities, iou_threshold=0.5, **_PER_CLASS
        ),
        "soft": lambda: torch_ops.soft_nms_per_class(
            shared, probabilities, sigma=0.5, prune_threshold=0.001, **_PER_CLASS
        ),
    }
    return {name: runner.columns(lambda _, work=work: work) for name, work in found.items()}


def _overlapping_boxes(rng, num_boxes: int, height: int, width: int) -> np.ndarray:
    """Like proposals: about twenty boxes around each of some things of all sizes."""
    size = np.array([width, height])
    things = max(1, num_boxes // 20)
    sides = np.exp(rng.uniform(np.log(0.03), np.log(0.7), (things, 2)))
    centers = rng.uniform(0, 1, (things, 2))
    which = rng.integers(0, things, num_boxes)
    centers = centers[which] + 0.15 * sides[which] * rng.standard_normal((num_boxes, 2))
    sides = sides[which] * np.exp(0.2 * rng.standard_normal((num_boxes, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], 1).clip(0, 1)
    return (boxes * np.tile(size, 2)).astype(np.float32)


def _peaked_probabilities(rng, num_boxes: int, num_classes: int) -> np.ndarray:
    logits = 4 * rng.standard_normal((num_boxes, num_classes + 1))
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return (exponentials / exponentials.sum(1, keepdims=True))[:, :-1].astype(np.float32)
