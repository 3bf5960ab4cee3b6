"""CLIP's ResNet and text tower in PyTorch, with OpenAI's names of the tensors, and RoIAlign.

What we are measured against: kernels of cuDNN and torchvision, all regions at once, the attention
pool by ``F.multi_head_attention_forward`` with its one query.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.torch_layers import FrozenNorm, TorchRunner, state_dict_of
from regionclip_jax.conversion import clip_keys
from regionclip_jax.models.presets import CLIPConfig
from regionclip_jax.ops.normalization import CLIP_MEAN, CLIP_STD


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = FrozenNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = FrozenNorm(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = FrozenNorm(4 * planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, bias=False), FrozenNorm(4 * planes)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.pool(F.relu(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            x = self.downsample(self.pool(x))
        return F.relu(out + x)


class AttentionPool(nn.Module):
    def __init__(self, grid_size: int, channels: int, num_heads: int, embed_dim: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(grid_size**2 + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, embed_dim)
        self.num_heads = num_heads

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None].to(x.dtype)
        pooled, _ = F.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1], self.num_heads, None,
            torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            None, None, False, 0.0, self.c_proj.weight, self.c_proj.bias,
            need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )  # fmt: skip
        return pooled[0]


class ImageTower(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.vision_width
        plan = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        for number, (before, after, stride) in enumerate(plan, start=1):
            conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", FrozenNorm(after))
        channels = width
        for stage, blocks in enumerate(config.vision_layers):
            planes, layers = width * 2**stage, []
            for block in range(blocks):
                layers.append(Bottleneck(channels, planes, 2 if stage and block == 0 else 1))
                channels = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.attnpool = AttentionPool(
            config.grid_size, channels, config.vision_heads, config.embed_dim
        )

    def feature_map(self, x):
        for number in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = F.avg_pool2d(x, 2)
        return self.layer3(self.layer2(self.layer1(x)))


class TextBlock(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask, is_causal=True)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class TorchCLIP(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.visual = ImageTower(config)
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.context_length, width))
        self.transformer = nn.ModuleDict(
            {
                "resblocks": nn.ModuleList(
                    TextBlock(width, config.text_heads) for _ in range(config.text_layers)
                )
            }
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        for name, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            tensor = torch.tensor(values)[:, None, None]
            self.register_buffer(f"pixel_{name}", tensor, persistent=False)

    def normalize(self, images):
        """uint8 [B, H, W, 3] to [B, 3, H, W]."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self.pixel_mean) / self.pixel_std

    def image_features(self, images):
        return self.visual.feature_map(self.normalize(images))

    def crops(self, features, boxes):
        """Boxes [B, R, 4] out of maps, [B * R, channels, P, P]."""
        size = 2 * self.config.grid_size
        return roi_align(features, list(boxes), size, 1 / 16, sampling_ratio=0, aligned=True)

    def encode_regions(self, features, boxes):
        embeddings = self.visual.attnpool(self.visual.layer4(self.crops(features, boxes)))
        return embeddings.reshape(*boxes.shape[:2], -1)

    def encode_text(self, tokens):
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, x.device, x.dtype)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        rows = torch.arange(len(x), device=x.device)
        return self.ln_final(x)[rows, tokens.argmax(-1)] @ self.text_projection


def concept_logits(embeddings, concepts, temperature: float):
    """Cosines over the temperature in fp32, as ours: bf16 would round a logit of 100 to halves."""
    with torch.autocast(embeddings.device.type, enabled=False):
        cosines = F.normalize(embeddings.float(), dim=-1) @ F.normalize(concepts.float(), dim=-1).T
    return cosines / temperature


def torch_clip(config: CLIPConfig, variables: dict, runner: TorchRunner) -> TorchCLIP:
    """A CLIP with our weights, where the runner runs; no parameter asks for a gradient."""
    if config.is_vit:
        raise SystemExit("--torch: only CLIP's ResNets have a counterpart here; leave --torch out")
    model = TorchCLIP(config)
    model.load_state_dict(state_dict_of(variables, clip_keys.origin))
    return runner.place(model.eval().requires_grad_(False))
