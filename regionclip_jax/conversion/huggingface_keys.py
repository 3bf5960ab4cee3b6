"""Renaming between Hugging Face CLIP's tensors and OpenAI's; its q, k, v are separate."""

import re
from collections.abc import Iterator

import numpy as np

from regionclip_jax.conversion.renaming import Renaming

_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_BLOCKS = {"vision_model.encoder.layers.": "visual.transformer.resblocks."} | {
    "text_model.encoder.layers.": "transformer.resblocks."
}
_RENAMING = Renaming(
    [
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        # The missing letter is in Hugging Face's own name.
        ("vision_model.pre_layrnorm.*", "visual.ln_pre.*"),
        ("vision_model.post_layernorm.*", "visual.ln_post.*"),
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm.*", "ln_final.*"),
        ("logit_scale", "logit_scale"),
        *(
            (f"{theirs}*.{module}.*", f"{ours}*.{name}.*")
            for theirs, ours in _BLOCKS.items()
            for module, name in _IN_BLOCK.items()
        ),
    ]
)
_QUERY = Renaming(
    [(f"{a}*.self_attn.q_proj.*", f"{b}*.attn.in_proj_*") for a, b in _BLOCKS.items()]
)
_TRANSPOSED = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}


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
        used = (name,)
        if name in _TRANSPOSED:
            new_name, tensor = _TRANSPOSED[name], tensor.T
        elif new_name := _QUERY.inwards(name):
            used = tuple(_parts(name))
            if not all(part in tensors for part in used):
                continue
            tensor = np.concatenate([tensors[part] for part in used])
        else:
            new_name = _RENAMING.inwards(name)
        if new_name is not None:
            renamed[new_name], names[new_name] = tensor, used
    return renamed, names


def from_openai(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Invert ``to_openai``; a tensor that no Hugging Face CLIP has is left out."""
    own_names = {ours: theirs for theirs, ours in _TRANSPOSED.items()}
    renamed = {}
    for name, tensor in tensors.items():
        if name in own_names:
            renamed[own_names[name]] = tensor.T
        elif query := _QUERY.outwards(name):
            renamed |= zip(_parts(query), np.split(tensor, 3), strict=True)
        elif own_name := _RENAMING.outwards(name):
            renamed[own_name] = tensor
    return renamed


def _parts(query: str) -> Iterator[str]:
    """Yield the names of q, k and v."""
    return (re.sub(r"\bq_proj\b", f"{letter}_proj", query) for letter in "qkv")
