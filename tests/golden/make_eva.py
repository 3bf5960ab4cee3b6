"""Make eva_tiny.npz and shapes_eva_tiny.json with torch 2.13, timm 1.0.31 and open_clip 3.3.0.

A small EVA-02-CLIP as open_clip builds one: timm's trunk (``visual.trunk.``) and open_clip's text
tower (``text.``). The dense map is CLIPSelf's: in the last block the attention is each patch
token's own value. ``import make_eva`` gives the functions to tests of larger models.
"""

import json
import pathlib
import runpy

import numpy as np
import open_clip.transformer
import timm
import torch

FOLDER = pathlib.Path(__file__).parent
SEED = 31
# Pixels: of the model's own grid of 5 x 5 patches, and of one with fewer rows and more columns.
SIZES = {"own": (50, 50), "other": (30, 70)}


def build(trunk: str, output_dim: int, text: dict, **changes) -> torch.nn.Module:
    """Return an EVA-02-CLIP with random weights: a timm name, changes of it, a text tower."""
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    model.visual.trunk = timm.create_model(
        trunk, num_classes=output_dim, dynamic_img_size=True, **changes
    )
    model.text = open_clip.transformer.TextTransformer(output_dim=output_dim, **text)
    model.logit_scale = torch.nn.Parameter(torch.zeros([]))
    model.eval()
    make_tensor = runpy.run_path(str(FOLDER / "make_weights.py"))["make_tensor"]
    state = model.state_dict()
    weights = {name: torch.from_numpy(make_tensor(name, x.shape)) for name, x in state.items()}
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def dense_map(trunk: timm.models.eva.Eva, images: torch.Tensor) -> torch.Tensor:
    """Return the projected map [N, h, w, D] of CLIPSelf's region path, not normalised."""
    patches = trunk.patch_embed(images)
    num, height, width, _ = patches.shape
    x, rope = trunk._pos_embed(patches)
    *blocks, last = trunk.blocks
    for block in blocks:
        x = block(x, rope=rope)
    x = x[:, 1:]
    attention = last.attn
    x = x + attention.proj(attention.norm(attention.v_proj(last.norm1(x))))
    x = x + last.mlp(last.norm2(x))
    return trunk.head(trunk.norm(x)).reshape(num, height, width, -1)


@torch.no_grad()
def outputs(model: torch.nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> dict:
    """Return embeddings, logits and the dense map as arrays."""
    whole, texts = model.visual.trunk(images), model.text(tokens)
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (whole, texts)]
    results = {
        "images": whole,
        "texts": texts,
        "logits": model.logit_scale.exp() * unit[0] @ unit[1].T,
        "map": dense_map(model.visual.trunk, images),
    }
    return {name: x.numpy() for name, x in results.items()}


def main() -> None:
    text = {"context_length": 16, "vocab_size": 600, "width": 128, "heads": 2, "layers": 2}
    model = build(
        "eva02_base_patch16_clip_224", 24, text,
        img_size=50, patch_size=10, embed_dim=128, depth=2, num_heads=2,
    )  # fmt: skip
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
    (FOLDER / "shapes_eva_tiny.json").write_text(json.dumps(shapes, indent=0) + "\n")
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(1, 599, (3, 16))
    # The end token has the largest id.
    tokens[np.arange(3), [5, 15, 9]] = 599
    arrays = {"tokens": tokens.astype(np.int32)}
    for name, size in SIZES.items():
        pixels = rng.standard_normal((2, 3, *size)).astype(np.float32)
        results = outputs(model, torch.from_numpy(pixels), torch.from_numpy(tokens))
        # The texts are the same for both sizes.
        arrays |= {key: results.pop(key) for key in ["texts"]}
        arrays |= {f"{name}_pixels": pixels}
        arrays |= {f"{name}_{key}": value for key, value in results.items()}
    np.savez_compressed(FOLDER / "eva_tiny.npz", **arrays)


if __name__ == "__main__":
    main()
