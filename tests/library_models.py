"""Outputs of ViT CLIPs of open_clip and of transformers, for comparison; needs torch.

Neither library has a dense map, so its reference is written here with the library's own modules.
In the last block each patch token takes its own value and the output projection in place of
attention. Residual and MLP stay, then follow the last layer norm and the projection.
"""

import numpy as np
import torch
import torch.nn.functional as F

Arrays = dict[str, np.ndarray]


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter off its initial value, zeros and ones included; keep the scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1:
                spread = float(parameter.std()) or 0.2
                parameter += 0.5 * spread * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def open_clip_outputs(model, pixels: np.ndarray, tokens: np.ndarray) -> Arrays:
    """Return embeddings of images and texts, logits and the dense map.

    Args:
        model: ``open_clip.model.CLIP`` with a ViT, whose grid is that of the pixels.
        pixels: normalised [B, 3, H, W].
        tokens: [N, L].
    """
    x, ids = torch.from_numpy(pixels), torch.from_numpy(tokens)
    visual = model.visual
    images, texts = model.encode_image(x), model.encode_text(ids)
    logits = model.get_logits(x, ids)[0]
    hidden = visual._embeds(x)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        hidden = block(hidden)
    patches, attention = hidden[:, 1:], last.attn
    width = patches.shape[-1]
    weight, bias = attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    patches = patches + attention.out_proj(F.linear(last.ln_1(patches), weight, bias))
    patches = patches + last.mlp(last.ln_2(patches))
    dense = visual.ln_post(patches) @ visual.proj
    return _arrays(
        images, texts, logits, dense, grid=[n // visual.patch_size[0] for n in x.shape[2:]]
    )


@torch.no_grad()
def huggingface_outputs(model, pixels: np.ndarray, tokens: np.ndarray) -> Arrays:
    """Return the same of ``transformers.CLIPModel``, whose positions are resized to the pixels."""
    x, ids = torch.from_numpy(pixels), torch.from_numpy(tokens)
    visual = model.vision_model
    found = visual(x, interpolate_pos_encoding=True)
    images = model.visual_projection(found.pooler_output)
    texts = model.text_projection(model.text_model(ids).pooler_output)
    logits = model(ids, x, interpolate_pos_encoding=True).logits_per_image
    hidden = visual.pre_layrnorm(visual.embeddings(x, interpolate_pos_encoding=True))
    *blocks, last = visual.encoder.layers
    for block in blocks:
        hidden = block(hidden, None)
    patches, attention = hidden[:, 1:], last.self_attn
    patches = patches + attention.out_proj(attention.v_proj(last.layer_norm1(patches)))
    patches = patches + last.mlp(last.layer_norm2(patches))
    dense = model.visual_projection(visual.post_layernorm(patches))
    patch = visual.embeddings.patch_size
    return _arrays(images, texts, logits, dense, grid=[n // patch for n in x.shape[2:]])


def _arrays(images, texts, logits, dense, grid: list[int]) -> Arrays:
    dense = dense.unflatten(1, grid)
    found = {"images": images, "texts": texts, "logits": logits, "dense": dense}
    return {name: value.numpy() for name, value in found.items()}
