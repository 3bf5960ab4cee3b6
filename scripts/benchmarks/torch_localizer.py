"""Detectron2's ResNet with a feature pyramid and proposals in PyTorch, with detectron2's names.

torchvision's own ResNet has other strides; its NMS is used.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from benchmarks.torch_layers import FrozenNorm, TorchRunner, state_dict_of
from regionclip_jax.conversion import localizer_keys
from regionclip_jax.models.localizer import LocalizerConfig, level_anchors
from regionclip_jax.ops.box_coder import MAX_LOG_RATIO
from regionclip_jax.ops.normalization import DETECTRON_MEAN


class NormedConv(nn.Conv2d):
    """Convolution without bias, with a frozen norm."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1):
        super().__init__(before, after, size, stride, padding=size // 2, bias=False)
        self.norm = FrozenNorm(after)

    def forward(self, x):
        return self.norm(super().forward(x))


class Bottleneck(nn.Module):
    def __init__(self, before: int, planes: int, after: int, stride: int):
        super().__init__()
        self.conv1 = NormedConv(before, planes, 1, stride)
        self.conv2 = NormedConv(planes, planes, 3)
        self.conv3 = NormedConv(planes, after, 1)
        self.shortcut = NormedConv(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x):
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Trunk(nn.Module):
    def __init__(self, config: LocalizerConfig):
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": NormedConv(3, config.stem_width, 7, 2)})
        before, self.stages = config.stem_width, []
        for stage, blocks in enumerate(config.blocks):
            planes, after = config.bottleneck_width * 2**stage, config.features * 2**stage
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(before, planes, after, 2 if stage and block == 0 else 1))
                before = after
            self.stages.append(f"res{stage + 2}")
            setattr(self, self.stages[-1], nn.Sequential(*layers))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem["conv1"](x)), 3, 2, 1)
        outputs = []
        for name in self.stages:
            x = getattr(self, name)(x)
            outputs.append(x)
        return outputs


class Pyramid(nn.Module):
    def __init__(self, config: LocalizerConfig):
        super().__init__()
        self.bottom_up = Trunk(config)
        channels, self.numbers = config.pyramid_channels, range(2, 2 + len(config.blocks))

        def conv(before: int, size: int) -> nn.Module:
            if config.pyramid_norm:
                return NormedConv(before, channels, size)
            return nn.Conv2d(before, channels, size, padding=size // 2)

        for number in self.numbers:
            setattr(self, f"fpn_lateral{number}", conv(config.features * 2 ** (number - 2), 1))
            setattr(self, f"fpn_output{number}", conv(channels, 3))

    def forward(self, x):
        levels, above = [], None
        for number, stage in reversed(list(zip(self.numbers, self.bottom_up(x), strict=True))):
            x = getattr(self, f"fpn_lateral{number}")(stage)
            if above is not None:
                x = x + F.interpolate(above, scale_factor=2.0, mode="nearest")
            above = x
            levels.insert(0, getattr(self, f"fpn_output{number}")(x))
        return [*levels, levels[-1][:, :, ::2, ::2]]


class TorchLocalizer(nn.Module):
    def __init__(self, config: LocalizerConfig):
        super().__init__()
        self.config = config
        self.backbone = Pyramid(config)
        channels = config.pyramid_channels
        head = {
            "conv": nn.Conv2d(channels, channels, 3, padding=1),
            "objectness_logits": nn.Conv2d(channels, 3, 1),
            "anchor_deltas": nn.Conv2d(channels, 12, 1),
        }
        self.proposal_generator = nn.ModuleDict({"rpn_head": nn.ModuleDict(head)})
        mean = torch.tensor(DETECTRON_MEAN)[:, None, None]
        self.register_buffer("pixel_mean", mean, persistent=False)

    def feature_levels(self, images):
        """Return the pyramid of uint8 RGB images [B, H, W, 3]; sides are multiples of 32."""
        return self.backbone(images.permute(0, 3, 1, 2).flip(1).float() - self.pixel_mean)

    def outputs(self, images):
        """Return logits [B, anchors] and deltas [B, anchors, 4] of every level."""
        head, logits, deltas = self.proposal_generator["rpn_head"], [], []
        for features in self.feature_levels(images):
            x = F.relu(head["conv"](features))
            logits.append(head["objectness_logits"](x).permute(0, 2, 3, 1).flatten(1).float())
            level = head["anchor_deltas"](x).permute(0, 2, 3, 1)
            deltas.append(level.reshape(len(x), -1, 4).float())
        return logits, deltas


def select_proposals(
    logits, deltas, anchors, height: int, width: int, *, pre_nms_topk, num_proposals, nms_threshold
):
    """Return the remaining boxes and logits of each image, best first."""
    boxes, scores, levels = [], [], []
    for level, (level_logits, level_deltas) in enumerate(zip(logits, deltas, strict=True)):
        best_logits, best = level_logits.topk(min(pre_nms_topk, level_logits.shape[1]))
        best_deltas = level_deltas.gather(1, best[..., None].expand(-1, -1, 4))
        boxes.append(_decode(best_deltas, anchors[level][best]))
        scores.append(best_logits)
        levels.append(torch.full_like(best, level))
    boxes, scores, levels = (torch.cat(parts, 1) for parts in (boxes, scores, levels))
    limit = torch.tensor([width, height, width, height], device=boxes.device)
    boxes = boxes.clamp(min=0).minimum(limit)
    found = []
    for boxes_, scores_, levels_ in zip(boxes, scores, levels, strict=True):
        real = (boxes_[:, 2:] > boxes_[:, :2]).all(-1)
        boxes_, scores_, levels_ = boxes_[real], scores_[real], levels_[real]
        kept = batched_nms(boxes_, scores_, levels_, nms_threshold)[:num_proposals]
        found.append((boxes_[kept], scores_[kept]))
    return found


def _decode(deltas, anchors):
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = deltas[..., :2] * sides + anchors[..., :2] + 0.5 * sides
    sides = deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() * sides
    return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], -1)


def torch_anchors(config: LocalizerConfig, height: int, width: int, runner: TorchRunner) -> list:
    return [runner.tensor(level).float() for level in level_anchors(config, height, width)]


def torch_localizer(
    config: LocalizerConfig, variables: dict, runner: TorchRunner
) -> TorchLocalizer:
    model = TorchLocalizer(config)
    model.load_state_dict(state_dict_of(variables, localizer_keys.origins(config)))
    return runner.place(model.eval().requires_grad_(False))
