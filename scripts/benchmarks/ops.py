"""RoIAlign, NMS, soft-NMS and attention alone, at the sizes of the paper's recipes."""

import argparse
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Program, Work
from regionclip_jax.models.transformer_blocks import dot_product_attention
from regionclip_jax.ops.nms import nms, nms_per_class
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.ops.soft_nms import soft_nms_per_class
from regionclip_jax.settings import NmsSettings

_STRIDE = 16
_HEAD_WIDTH = 64
_PER_CLASS = {"score_threshold": 0.001, "max_outputs": 100}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--height", type=int, default=800, help="of the canvas; cells are 16 x 16")
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--crop", type=int, default=14, help="side of a crop, in cells")
    parser.add_argument("--regions", type=int, nargs="+", default=[100, 1000], help="of an image")
    parser.add_argument(
        "--implementations", nargs="+", default=["gather", "matmul", "matmul_rows"],
        help="implementations of RoIAlign",
    )  # fmt: skip
    parser.add_argument("--candidates", type=int, default=12_000, help="boxes before NMS")
    parser.add_argument("--kept", type=int, default=2_000, help="boxes after NMS")
    parser.add_argument("--scored", type=int, default=1_000, help="boxes before NMS per class")
    parser.add_argument("--classes", type=int, nargs="+", default=[65, 1203])
    parser.add_argument("--tokens", type=int, default=2210, help="tokens of attention")
    parser.add_argument("--heads", type=int, default=12)


def works(args: argparse.Namespace, runner) -> Iterator[Work]:
    for num_regions in args.regions:
        yield from _align(args, num_regions, runner)
    yield from _suppress(args, runner)
    yield from _attend(args, runner)


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
    for implementation in args.implementations:
        forward, both = _our_align(args.crop, implementation)
        for how, call in (("forward", forward), ("both ways", both)):
            yield Work(
                f"RoIAlign, {num_regions} regions, {implementation}, {how}",
                Program(call, features, boxes),
                theirs[how],
            )


def _our_align(crop: int, implementation: str) -> tuple[Callable, Callable]:
    def forward(features, boxes):
        return roi_align(features, boxes, crop, 1 / _STRIDE, implementation=implementation)

    def both(features, boxes):
        # Return the crops too: their gradient alone does not need them.
        crops, backward = jax.vjp(lambda maps: forward(maps, boxes), features)
        return crops, backward(jnp.ones_like(crops))

    return forward, both


def _torch_align(crop: int, features, boxes, runner) -> dict[str, dict]:
    import torch
    from torchvision.ops import roi_align as their_align

    dtype = torch.bfloat16 if runner.is_bfloat16 else torch.float32
    # torchvision's kernel needs the channels first in memory.
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
    boxes = jnp.array(_overlapping_boxes(rng, args.candidates, args.height, args.width))
    scores = jnp.array(rng.standard_normal(args.candidates), jnp.float32)
    outputs = min(args.kept, args.candidates)

    def suppress(boxes, scores):
        exist = jnp.ones(len(boxes), bool)
        return nms(boxes, scores, exist, iou_threshold=0.7, max_outputs=outputs)

    yield Work(
        f"NMS, {args.candidates} -> {outputs}",
        Program(suppress, boxes, scores),
        _torch_nms(boxes, scores, outputs, runner) if runner else {},
    )
    shared = jnp.array(_overlapping_boxes(rng, args.scored, args.height, args.width))
    for num_classes in args.classes:
        probabilities = jnp.array(_peaked_probabilities(rng, args.scored, num_classes))
        theirs = _torch_per_class(shared, probabilities, runner) if runner else {}

        def hard(boxes, scores):
            exist = jnp.ones(len(boxes), bool)
            return nms_per_class(boxes, scores, exist, iou_threshold=0.5, **_PER_CLASS)

        def soft(boxes, scores):
            exist = jnp.ones(len(boxes), bool)
            return soft_nms_per_class(
                boxes, scores, exist, nms=NmsSettings("gaussian"), **_PER_CLASS
            )

        sizes = f"{args.scored} x {num_classes} -> {_PER_CLASS['max_outputs']}"
        for name, function in (("NMS", hard), ("soft-NMS", soft)):
            yield Work(
                f"{name} per class, {sizes}",
                Program(function, shared, probabilities),
                theirs.get(name, {}),
            )


def _torch_nms(boxes, scores, num_outputs: int, runner) -> dict[str, Callable]:
    from torchvision.ops import nms as their_nms

    boxes, scores = runner.tensor(boxes), runner.tensor(scores)
    return runner.columns(lambda _: lambda: their_nms(boxes, scores, 0.7)[:num_outputs])


def _torch_per_class(boxes, scores, runner) -> dict[str, dict]:
    from benchmarks import torch_ops

    boxes, scores = runner.tensor(boxes), runner.tensor(scores)
    found = {
        "NMS": lambda: torch_ops.nms_per_class(boxes, scores, iou_threshold=0.5, **_PER_CLASS),
        "soft-NMS": lambda: torch_ops.soft_nms_per_class(
            boxes, scores, sigma=0.5, prune_threshold=0.001, **_PER_CLASS
        ),
    }
    return {name: runner.columns(lambda _, work=work: work) for name, work in found.items()}


def _attend(args, runner) -> Iterator[Work]:
    """Yield rows of attention as the towers compute it on this device."""
    shape = args.images, args.tokens, args.heads, _HEAD_WIDTH
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, shape, jnp.dtype(args.dtype)) for key in keys]
    theirs = _torch_attend(arrays, runner) if runner else {}

    def forward(query, key, value):
        return dot_product_attention(query, key, value, None)

    def both(query, key, value):
        out, backward = jax.vjp(forward, query, key, value)
        return out, backward(jnp.ones_like(out))

    for how, function in (("forward", forward), ("both ways", both)):
        name = f"attention, {args.tokens} tokens, {args.heads} heads, {how}"
        yield Work(name, Program(function, *arrays), theirs.get(how, {}))


def _torch_attend(arrays, runner) -> dict[str, dict]:
    import torch
    from torch.nn import functional as F

    dtype = torch.bfloat16 if runner.is_bfloat16 else torch.float32
    tensors = [
        runner.tensor(array.astype(jnp.float32)).to(dtype).transpose(1, 2).contiguous()
        for array in arrays
    ]
    differentiated = [tensor.clone().requires_grad_() for tensor in tensors]

    def both():
        out = F.scaled_dot_product_attention(*differentiated)
        return torch.autograd.grad(out, differentiated, torch.ones_like(out))

    return {
        "forward": runner.columns(lambda _: lambda: F.scaled_dot_product_attention(*tensors)),
        "both ways": runner.columns(lambda _: both, gradients=True),
    }


def _overlapping_boxes(rng, num_boxes: int, height: int, width: int) -> np.ndarray:
    """Draw boxes like proposals: about twenty around each of several objects of all sizes."""
    size = np.array([width, height])
    objects = max(1, num_boxes // 20)
    sides = np.exp(rng.uniform(np.log(0.03), np.log(0.7), (objects, 2)))
    centers = rng.uniform(0, 1, (objects, 2))
    which = rng.integers(0, objects, num_boxes)
    centers = centers[which] + 0.15 * sides[which] * rng.standard_normal((num_boxes, 2))
    sides = sides[which] * np.exp(0.2 * rng.standard_normal((num_boxes, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], 1).clip(0, 1)
    return (boxes * np.tile(size, 2)).astype(np.float32)


def _peaked_probabilities(rng, num_boxes: int, num_classes: int) -> np.ndarray:
    logits = 4 * rng.standard_normal((num_boxes, num_classes + 1))
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return (exponentials / exponentials.sum(1, keepdims=True))[:, :-1].astype(np.float32)
