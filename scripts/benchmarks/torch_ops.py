"""Operations of ``ops`` from torchvision, or composed like detectron2."""

import torch
from torchvision.ops import batched_nms, box_iou


def nms_per_class(boxes, scores, *, score_threshold, iou_threshold, max_outputs):
    """Return boxes, classes and scores of the best of boxes [R, 4], scores [R, C] (detectron2)."""
    regions, classes = (scores > score_threshold).nonzero(as_tuple=True)
    boxes, scores = boxes[regions], scores[regions, classes]
    kept = batched_nms(boxes, scores, classes, iou_threshold)[:max_outputs]
    return boxes[kept], classes[kept], scores[kept]


def soft_nms_per_class(boxes, scores, *, score_threshold, sigma, prune_threshold, max_outputs):
    """Apply Gaussian soft NMS within classes: repeatedly select the best and lower the others.

    Like the reference's, but it stops at ``max_outputs``, like ours.
    """
    regions, classes = (scores > score_threshold).nonzero(as_tuple=True)
    boxes, scores = boxes[regions], scores[regions, classes]
    shifted = boxes + classes[:, None] * (boxes.max() + 1)
    found = []
    while len(scores) and len(found) < max_outputs:
        best = scores.argmax()
        found.append((boxes[best], classes[best], scores[best]))
        lowered = scores * (-(box_iou(shifted[best][None], shifted)[0] ** 2) / sigma).exp()
        lowered[best] = 0
        stays = lowered > prune_threshold
        boxes, classes, scores, shifted = (x[stays] for x in (boxes, classes, lowered, shifted))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]
