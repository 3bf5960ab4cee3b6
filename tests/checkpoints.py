"""Checkpoint files that tests write, without torch."""

import json
import math
import re
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


def to_caffe2(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the trunk of a pyramid with the names and folded norms of MSRA's R-50.pkl."""
    result = {"fc1000_w": np.zeros((10, 4), np.float32), "conv1_b": np.zeros(4, np.float32)}
    for name, value in tensors.items():
        if "bottom_up." not in name or name.endswith(("running_mean", "running_var")):
            continue
        name = name.removeprefix("backbone.bottom_up.")
        name = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1")
        name = re.sub(r"(res\d)\.(\d)\.shortcut", r"\1_\2_branch1", name)
        name = re.sub(
            r"(res\d)\.(\d)\.conv(\d)", lambda m: f"{m[1]}_{m[2]}_branch2{'?abc'[int(m[3])]}", name
        )
        is_norm = "norm" in name or "_bn." in name
        name = name.replace(".norm", "_bn")
        leaf = {"weight": "s" if is_norm else "w", "bias": "b"}[name.rpartition(".")[2]]
        result[f"{name.rpartition('.')[0]}_{leaf}"] = value
    return result
