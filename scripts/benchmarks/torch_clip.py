"""CLIP's image and text towers in PyTorch, with OpenAI's tensor names, and RoIAlign.

This is the baseline: kernels of cuDNN and torchvision, and all regions at once. The attention pool
uses ``F.multi_head_attention_forward`` with one query. The ViT's dense form for regions
(``regionclip_jax.models.vision_transformer``) uses fused attention.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from benchmarks.torch_layers import FrozenNorm, TorchRunner, state_dict_of
from regionclip_jax.conversion import clip_keys
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.transformer_blocks import BlockSizes
from regionclip_jax.models.vision_transformer import ViTConfig


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
        image = config.image
        width = image.width
        plan = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        for number, (before, after, stride) in enumerate(plan, start=1):
            conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", FrozenNorm(after))
        channels = width
        for stage, blocks in enumerate(image.layers):
            planes, layers = width * 2**stage, []
            for block in range(blocks):
                layers.append(Bottleneck(channels, planes, 2 if stage and block == 0 else 1))
                channels = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.attnpool = AttentionPool(
            config.crop_size // 2, channels, image.heads, config.embed_dim
        )

    def feature_map(self, x):
        for number in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = F.avg_pool2d(x, 2)
        return self.layer3(self.layer2(self.layer1(x)))


class Block(nn.Module):
    """Residual attention block of the text tower and the ViT."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        width, hidden = sizes.width, sizes.mlp_width or 4 * sizes.width
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, sizes.eps) for _ in range(2))
        self.attn = nn.MultiheadAttention(width, sizes.heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)}
        )
        self.activation = _ACTIVATIONS[sizes.activation]

    def forward(self, x, mask=None, queries: int | None = None):
        """Apply the block; with ``queries``, only to the first ``queries`` tokens."""
        y = self.ln_1(x)
        causal = mask is not None
        mixed = self.attn(
            y[:, :queries], y, y, need_weights=False, attn_mask=mask, is_causal=causal
        )
        return self._mlp(x[:, :queries] + mixed[0])

    def values_only(self, x):
        """Apply the block with each token's own value instead of attention."""
        width = x.shape[-1]
        weight, bias = self.attn.in_proj_weight[2 * width :], self.attn.in_proj_bias[2 * width :]
        return self._mlp(x + self.attn.out_proj(F.linear(self.ln_1(x), weight, bias)))

    def _mlp(self, x):
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](self.activation(y))


_ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


def blocks(sizes: BlockSizes) -> nn.ModuleDict:
    layers = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
    return nn.ModuleDict({"resblocks": layers})


class VisionTransformer(nn.Module):
    """ViT on canvases of one size, to which its grid of positions is resized."""

    def __init__(self, config: CLIPConfig, canvas: tuple[int, int]):
        super().__init__()
        image = config.image
        width, patch = image.width, image.patch_size
        grid = image.grid_size(config.preprocessing.resolution)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid**2 + 1, width))
        self.ln_pre, self.ln_post = (nn.LayerNorm(width, image.eps) for _ in range(2))
        self.transformer = blocks(image)
        self.proj = nn.Parameter(torch.zeros(width, config.embed_dim))
        for axis, side in zip("yx", canvas, strict=True):
            matrix = _spread(grid, side // patch)
            self.register_buffer(f"spread_{axis}", torch.tensor(matrix), persistent=False)

    def features(self, x):
        """Return maps [B, width, h, w] and embeddings of whole images [B, D]."""
        x = self.conv1(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        side = self.spread_y.shape[1]
        grid = self.positional_embedding[1:].reshape(side, side, -1)
        rows = torch.einsum("hg,wk,gkc->hwc", self.spread_y, self.spread_x, grid).flatten(0, 1)
        positions = torch.cat([self.positional_embedding[:1], rows])
        x = self.ln_pre(torch.cat([first, x], 1) + positions.to(x.dtype))
        layers = self.transformer["resblocks"]
        for block in layers[:-1]:
            x = block(x)
        whole = self.ln_post(layers[-1](x, queries=1)[:, 0]) @ self.proj
        dense = self.ln_post(layers[-1].values_only(x[:, 1:]))
        return dense.transpose(1, 2).unflatten(2, (height, width)), whole


def _spread(grid: int, cells: int) -> np.ndarray:
    """Return the matrix [cells, grid] that resizes an axis like our ViT (bicubic)."""
    scale = jnp.array([cells / grid])
    return np.asarray(
        jax.image.scale_and_translate(
            jnp.eye(grid), (cells, grid), (0,), scale, jnp.zeros(1), "bicubic", antialias=False
        )
    )


class TorchCLIP(nn.Module):
    def __init__(self, config: CLIPConfig, canvas: tuple[int, int] | None = None):
        super().__init__()
        if not isinstance(config.image, ResNetConfig | ViTConfig):
            raise ValueError(f"no PyTorch counterpart of {type(config.image).__name__}")
        self.config = config
        self.is_vit = isinstance(config.image, ViTConfig)
        self.visual = VisionTransformer(config, canvas) if self.is_vit else ImageTower(config)
        text = config.text
        width = text.width
        self.token_embedding = nn.Embedding(text.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(text.context_length, width))
        self.transformer = blocks(text)
        self.ln_final = nn.LayerNorm(width, text.eps)
        self.text_projection = nn.Parameter(torch.zeros(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        for name in ("mean", "std"):
            tensor = torch.tensor(getattr(config.preprocessing, name))[:, None, None]
            self.register_buffer(f"pixel_{name}", tensor, persistent=False)

    def normalize(self, images):
        """Normalize uint8 [B, H, W, 3] to [B, 3, H, W]."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self.pixel_mean) / self.pixel_std

    def image_features(self, images):
        """Return the feature maps of the regions, NCHW."""
        pixels = self.normalize(images)
        if self.is_vit:
            return self.visual.features(pixels)[0]
        return self.visual.feature_map(pixels)

    def encode_regions(self, features, boxes):
        """Return embeddings [B, R, D] of boxes [B, R, 4]."""
        if self.is_vit:
            scale = 1 / self.config.image.stride
            crops = roi_align(features, list(boxes), 1, scale, sampling_ratio=0, aligned=True)
            embeddings = crops.flatten(1) @ self.visual.proj
        else:
            size = self.config.crop_size
            crops = roi_align(features, list(boxes), size, 1 / 16, sampling_ratio=0, aligned=True)
            embeddings = self.visual.attnpool(self.visual.layer4(crops))
        return embeddings.reshape(*boxes.shape[:2], -1)

    def encode_images_and_regions(self, images, boxes):
        """Return embeddings of whole images [B, D] and of their boxes [B, R, D]."""
        if self.is_vit:
            features, whole = self.visual.features(self.normalize(images))
            return whole, self.encode_regions(features, boxes)
        height, width = images.shape[1:3]
        whole = boxes.new_tensor([0, 0, width, height]).expand(len(boxes), 1, 4)
        embeddings = self.encode_regions(self.image_features(images), torch.cat([whole, boxes], 1))
        return embeddings[:, 0], embeddings[:, 1:]

    def encode_text(self, tokens):
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, x.device, x.dtype)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        rows = torch.arange(len(x), device=x.device)
        return self.ln_final(x)[rows, tokens.argmax(-1)] @ self.text_projection


def concept_logits(embeddings, concepts, temperature: float):
    """Return cosine / temperature in fp32, like ours: bf16 would round a logit of 100 to halves."""
    with torch.autocast(embeddings.device.type, enabled=False):
        cosines = F.normalize(embeddings.float(), dim=-1) @ F.normalize(concepts.float(), dim=-1).T
    return cosines / temperature


def torch_clip(
    config: CLIPConfig,
    variables: dict,
    runner: TorchRunner,
    canvas: tuple[int, int] | None = None,
) -> TorchCLIP:
    """Build a CLIP with our weights on the runner's device; no parameter requires a gradient.

    Args:
        canvas: (height, width) of the images; a ViT needs it for its positions.
    """
    model = TorchCLIP(config, canvas)
    model.load_state_dict(state_dict_of(variables, clip_keys.origin))
    return runner.place(model.eval().requires_grad_(False))
