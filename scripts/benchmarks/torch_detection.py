"""Zero-shot detection in PyTorch: pyramid, proposals, regions, class scores, NMS per class."""

import torch
from torch.nn import functional as F

from benchmarks.torch_clip import TorchCLIP, concept_logits
from benchmarks.torch_localizer import TorchLocalizer, select_proposals
from benchmarks.torch_ops import nms_per_class
from regionclip_jax.settings import DetectionSettings, ProposalSettings


def class_probabilities(embeddings, classes, temperature: float):
    logits = concept_logits(embeddings, classes, temperature)
    return F.pad(logits, (0, 1)).softmax(-1)[..., :-1]


def choose(boxes, scores, settings: DetectionSettings):
    """Return the detections of every image from its boxes and scores."""
    return [
        nms_per_class(
            boxes_, scores_,
            score_threshold=settings.score_threshold,
            iou_threshold=settings.nms.threshold,
            max_outputs=settings.max_detections,
        )
        for boxes_, scores_ in zip(boxes, scores, strict=True)
    ]  # fmt: skip


def make_detect(
    clip: TorchCLIP,
    localizer: TorchLocalizer,
    anchors: list,
    classes,
    settings: DetectionSettings,
    proposals: ProposalSettings,
    compile_,
):
    """Build ``images -> detections``; networks may be compiled, the selection of boxes is not."""
    outputs, features = compile_(localizer.outputs), compile_(clip.image_features)
    encode = compile_(clip.encode_regions)

    def detect(images):
        height, width = images.shape[1:3]
        logits, deltas = outputs(images)
        found = select_proposals(
            logits, deltas, anchors, height, width,
            pre_nms_topk=proposals.pre_nms_topk,
            num_proposals=proposals.num_proposals,
            nms_threshold=proposals.nms_threshold,
        )  # fmt: skip
        # Images with fewer proposals get empty boxes, so that one call embeds all.
        boxes = torch.stack(
            [F.pad(b, (0, 0, 0, proposals.num_proposals - len(b))) for b, _ in found]
        )
        probabilities = class_probabilities(
            encode(features(images), boxes), classes, settings.temperature
        )
        scores = [
            (p[: len(logits)] * logits.sigmoid()[:, None]).sqrt()
            for p, (_, logits) in zip(probabilities, found, strict=True)
        ]
        return choose([b for b, _ in found], scores, settings)

    return detect
