"""Renaming of Hugging Face CLIP's tensors to OpenAI's; separate q, k, v are packed into one."""

import re

import numpy as np

_MODULES = [
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    # The missing letter is in Hugging Face's own name.
    (r"vision_model\.pre_layrnorm\.(weight|bias)", r"visual.ln_pre.\1"),
    (r"vision_model\.post_layernorm\.(weight|bias)", r"visual.ln_post.\1"),
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.(weight|bias)", r"ln_final.\1"),
    (r"logit_scale", "logit_scale"),
]
_TRANSPOSED = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TOWER = {"vision": "visual.", "text": ""}


def is_huggingface(tensors: dict[str, np.ndarray]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in tensors)


def to_openai(
    tensors: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Rename, pack and transpose; a block without one of q, k, v has no packed tensor.

    Returns:
        Tensors by OpenAI's names, and for each the file's own names (three if it was packed).
    """
    renamed, names = {}, {}
    for name, tensor in tensors.items():
        new_name, used = None, (name,)
        if name in _TRANSPOSED:
            new_name, tensor = _TRANSPOSED[name], tensor.T
        elif match := _BLOCK.fullmatch(name):
            tower, block, module, leaf = match.groups()
            prefix = f"{_TOWER[tower]}transformer.resblocks.{block}"
            if module in _IN_BLOCK:
                new_name = f"{prefix}.{_IN_BLOCK[module]}.{leaf}"
            elif module == "self_attn.q_proj":
                parts = tuple(name.replace("q_proj", f"{letter}_proj") for letter in "qkv")
                if all(part in tensors for part in parts):
                    new_name, used = f"{prefix}.attn.in_proj_{leaf}", parts
                    tensor = np.concatenate([tensors[part] for part in parts])
        else:
            for pattern, replacement in _MODULES:
                if match := re.fullmatch(pattern, name):
                    new_name = match.expand(replacement)
        if new_name is not None:
            renamed[new_name], names[new_name] = tensor, used
    return renamed, names
