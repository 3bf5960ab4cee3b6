"""Make vit_open_clip.npz and vit_huggingface.npz with torch 2.13, open_clip 3.3, transformers 5.24.

One ViT CLIP with GELU, heads that are not 64 wide and MLPs that are not four times as wide, in
both libraries. Its weights are those of ``make_weights.py``. The second grid has fewer rows and
more columns than that of the positions, so the libraries resize them by different rules.
Call: PYTHONPATH=tests python tests/golden/make_vits.py
"""

import copy
import json
import pathlib

import numpy as np
import torch
from open_clip.model import CLIP, resize_pos_embed
from transformers import CLIPConfig, CLIPModel

from checkpoints import to_huggingface
from library_models import huggingface_outputs, open_clip_outputs
from parity.golden import make_state_dict

FOLDER = pathlib.Path(__file__).parent
EMBED_DIM, TEXTS, SIZES = 24, 3, {"": (42, 42), "_other": (28, 70)}
VISION = dict(
    layers=2, width=48, head_width=24, patch_size=14, mlp_ratio=4.3637, image_size=42
)  # fmt: skip
# The vocabulary of the tests is padded to CLIP's.
TEXT = dict(context_length=12, vocab_size=64, width=40, heads=5, layers=2, mlp_ratio=3.3)

rng = np.random.default_rng(3)
tokens = rng.integers(1, 60, (TEXTS, TEXT["context_length"]))
for row, end in enumerate((11, 4, 7)):
    tokens[row, end], tokens[row, end + 1 :] = 63, 0
pixels = {
    suffix: rng.standard_normal((2, 3, *size)).astype(np.float32) for suffix, size in SIZES.items()
}


def build(image_size) -> CLIP:
    return CLIP(EMBED_DIM, VISION | {"image_size": image_size}, TEXT).eval()


model = build(42)
shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
(FOLDER / "shapes_vit_odd.json").write_text(json.dumps(shapes, indent=0) + "\n")
tensors = make_state_dict("vit_odd")
weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
huggingface = CLIPModel(
    CLIPConfig(
        projection_dim=EMBED_DIM,
        vision_config=dict(
            hidden_size=48, intermediate_size=209, num_hidden_layers=2, num_attention_heads=2,
            image_size=42, patch_size=14, hidden_act="gelu",
        ),
        text_config=dict(
            hidden_size=40, intermediate_size=132, num_hidden_layers=2, num_attention_heads=5,
            vocab_size=64, max_position_embeddings=12, hidden_act="gelu", eos_token_id=2,
            bos_token_id=62, pad_token_id=0,
        ),
    )
).eval()  # fmt: skip
renamed = {
    name: torch.from_numpy(np.array(tensor))
    for name, tensor in to_huggingface(tensors).items()
    if not name.endswith("position_ids")
}
huggingface.load_state_dict(renamed)

results = {"open_clip": {}, "huggingface": {}}
for suffix, images in pixels.items():
    model = build(SIZES[suffix])
    resized = copy.copy(weights)
    resize_pos_embed(resized, model)
    model.load_state_dict(resized)
    found = {
        "open_clip": open_clip_outputs(model, images, tokens),
        "huggingface": huggingface_outputs(huggingface, images, tokens),
    }
    for library, arrays in found.items():
        results[library] |= {f"{name}{suffix}": value for name, value in arrays.items()}
for library, arrays in results.items():
    inputs = {f"pixels{suffix}": images for suffix, images in pixels.items()}
    path = FOLDER / f"vit_{library}.npz"
    np.savez_compressed(path, tokens=tokens.astype(np.int32), **inputs, **arrays)
