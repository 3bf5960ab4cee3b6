"""One update of RegionCLIP pretraining in PyTorch: teacher, student, three losses, SGD."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.torch_clip import TorchCLIP, concept_logits, torch_clip
from benchmarks.torch_layers import TorchRunner
from regionclip_jax.conversion import clip_keys
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.settings import PretrainObjective


def train_as_ours(model: TorchCLIP, trained_paths: dict[str, int]) -> list:
    """Enable gradients for the tensors that ours trains, and return them.

    Args:
        trained_paths: paths of our trained parameters -> numbers of dimensions.
    """
    names = {clip_keys.origin(path, num_dims).name for path, num_dims in trained_paths.items()}
    parameters = [p for name, p in model.named_parameters() if name in names]
    return [parameter.requires_grad_() for parameter in parameters]


def draw_boxes(images, num_regions: int, grid: int):
    """Draw boxes with corners on a grid and positive sides."""
    num, height, width, _ = images.shape
    cells = torch.tensor([width // grid, height // grid], device=images.device)
    low = (torch.rand(num, num_regions, 2, device=images.device) * cells).floor()
    span = 1 + (torch.rand(low.shape, device=low.device) * (cells - low)).floor()
    return torch.cat([low, torch.minimum(low + span, cells)], -1) * grid


def label_with_teacher(teacher: TorchCLIP, images, boxes, concepts, settings: PretrainObjective):
    """Return the teacher's logits [N, C] of all regions, their concepts, and the kept mask."""
    embeddings = teacher.encode_regions(teacher.image_features(images), boxes).flatten(0, 1)
    logits = concept_logits(embeddings, concepts, settings.teacher_temperature)
    confidence, targets = logits.softmax(-1).max(-1)
    keep = confidence > settings.concept_threshold
    return logits, targets, keep | ~keep.any()


def losses_of(
    student: TorchCLIP, images, tokens, boxes, concepts, labels, settings: PretrainObjective
) -> dict:
    """Return the three losses for one group of all images; labels from ``label_with_teacher``."""
    teacher_logits, targets, keep = labels
    wholes, regions = student.encode_images_and_regions(images, boxes)
    regions = regions.flatten(0, 1)
    logits = concept_logits(regions, concepts, settings.temperature)
    log_student, log_teacher = F.log_softmax(logits, -1), F.log_softmax(teacher_logits, -1)
    distillation = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    # Like ours: against all labels of the group, without a matrix of regions by regions.
    counts = torch.zeros(len(concepts), device=boxes.device).index_add(0, targets, keep.float())
    shifted = logits + torch.where(counts > 0, counts.log(), -1e9)
    contrastive = F.cross_entropy(shifted, targets, reduction="none")
    texts = student.encode_text(tokens)
    pairs = concept_logits(wholes, texts, settings.temperature)
    matching = torch.arange(len(pairs), device=pairs.device)
    return {
        "image_text": (F.cross_entropy(pairs, matching) + F.cross_entropy(pairs.T, matching)) / 2,
        "distillation": (distillation * keep).sum() / keep.sum(),
        "contrastive": torch.where(keep, contrastive, 0.0).sum() / keep.sum(),
    }


def make_step(
    config: CLIPConfig,
    variables: dict,
    trained_paths: dict[str, int],
    concepts,
    settings: PretrainObjective,
    runner: TorchRunner,
    compile_: Callable,
    canvas: tuple[int, int],
) -> Callable:
    """Build ``(images, tokens) -> loss``: one whole update of its own student."""
    teacher, student = (torch_clip(config, variables, runner, canvas) for _ in range(2))
    parameters = train_as_ours(student, trained_paths)
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9)
    label, losses = compile_(label_with_teacher), compile_(losses_of)

    def step(images, tokens):
        boxes = draw_boxes(images, settings.num_regions, settings.box_grid)
        with torch.no_grad():
            labels = label(teacher, images, boxes, concepts, settings)
        loss = sum(losses(student, images, tokens, boxes, concepts, labels, settings).values())
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, enabled=False):
            loss.backward()
            optimizer.step()
        return loss.detach()

    return step
