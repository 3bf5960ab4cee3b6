"""Checkpoint files that tests write, without torch."""

import json
import math
import struct
from pathlib import Path

import numpy as np

_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64"}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    header, start = {}, 0
    for key, value in tensors.items():
        value = np.asarray(value)
        header[key] = {
            "dtype": _NAMES[str(value.dtype)],
            "shape": list(value.shape),
            "data_offsets": [start, start + math.prod(value.shape) * value.itemsize],
        }
        start = header[key]["data_offsets"][1]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            file.write(np.ascontiguousarray(value).tobytes())
    return path


def with_vocabulary(tensors: dict[str, np.ndarray], num_ids: int = 49408) -> dict[str, np.ndarray]:
    """Return the tensors with zeros for the token ids that the small golden models lack."""
    name = "token_embedding.weight"
    rows = tensors[name]
    return tensors | {name: np.pad(rows, ((0, num_ids - len(rows)), (0, 0)))}


def to_huggingface(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return OpenAI's ViT tensors by Hugging Face names, without the table of the reader."""
    renames = [
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("transformer.resblocks.", "text_model.encoder.layers."),
        ("visual.conv1", "vision_model.embeddings.patch_embedding"),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final", "text_model.final_layer_norm"),
    ]
    inner = [
        (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."), (".attn.", ".self_attn."),
    ]  # fmt: skip
    result = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    for key, value in tensors.items():
        if key in ("visual.proj", "text_projection"):
            name = "visual_projection" if key == "visual.proj" else "text_projection"
            result[f"{name}.weight"] = value.T
            continue
        for old, new in renames:
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        for old, new in inner:
            key = key.replace(old, new)
        if "in_proj_" in key:
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                result[key.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            result[key] = value
    return result
