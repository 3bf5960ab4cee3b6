"""Names of SigLIP's tensors in Hugging Face's and open_clip's files, and its architecture.

Both are renamed to OpenAI's names, as far as these reach, so that ``clip_keys.origin`` knows the
blocks. Names of the MAP head are ``visual.attn_pool.*`` with a packed ``in_proj_weight``, as in
Hugging Face's files; open_clip's, which are timm's, keep q apart from k and v.

Source: ``modeling_siglip.py`` of transformers 5.24, ``AttentionPoolLatent`` and
``VisionTransformer`` of timm 1.0.31.
"""

import math
import re

import numpy as np

from regionclip_jax.artifacts.card_fields import CheckpointMismatch, require_plausible
from regionclip_jax.conversion import clip_keys, huggingface_keys
from regionclip_jax.conversion.architecture import count_blocks, require_shape
from regionclip_jax.conversion.layouts import DENSE, NORM, Layout, Origin
from regionclip_jax.conversion.renaming import Renaming
from regionclip_jax.models.presets import openai_heads
from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing

_REMEDY = "give a whole checkpoint of one SigLIP"
_TRUNK = "visual.trunk."
_HUGGINGFACE_HEAD = "vision_model.head."
_HUGGINGFACE_PATCHES = "vision_model.embeddings.patch_embedding.weight"
# Names that Hugging Face's CLIP does not have.
_HUGGINGFACE = Renaming(
    [
        ("vision_model.embeddings.patch_embedding.bias", "visual.conv1.bias"),
        ("vision_model.head.probe", "visual.attn_pool.probe"),
        ("vision_model.head.attention.in_proj_*", "visual.attn_pool.in_proj_*"),
        ("vision_model.head.attention.out_proj.*", "visual.attn_pool.out_proj.*"),
        ("vision_model.head.layernorm.*", "visual.attn_pool.ln.*"),
        ("vision_model.head.mlp.fc1.*", "visual.attn_pool.mlp.c_fc.*"),
        ("vision_model.head.mlp.fc2.*", "visual.attn_pool.mlp.c_proj.*"),
        ("text_model.head.*", "text_projection.*"),
        ("logit_bias", "logit_bias"),
    ]
)
_IN_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_OPEN_CLIP = Renaming(
    [
        ("visual.trunk.patch_embed.proj.*", "visual.conv1.*"),
        ("visual.trunk.pos_embed", "visual.positional_embedding"),
        ("visual.trunk.norm.*", "visual.ln_post.*"),
        ("visual.trunk.attn_pool.latent", "visual.attn_pool.probe"),
        ("visual.trunk.attn_pool.proj.*", "visual.attn_pool.out_proj.*"),
        ("visual.trunk.attn_pool.norm.*", "visual.attn_pool.ln.*"),
        ("visual.trunk.attn_pool.mlp.fc1.*", "visual.attn_pool.mlp.c_fc.*"),
        ("visual.trunk.attn_pool.mlp.fc2.*", "visual.attn_pool.mlp.c_proj.*"),
        *(
            (f"visual.trunk.blocks.*.{theirs}*", f"visual.transformer.resblocks.*.{ours}*")
            for theirs, ours in _IN_BLOCK.items()
        ),
        ("logit_scale", "logit_scale"),
        ("logit_bias", "logit_bias"),
        ("text.**", "**"),
    ]
)
# timm keeps q apart from k and v.
_PACKED_QUERY = Renaming([("visual.trunk.attn_pool.q.*", "visual.attn_pool.in_proj_*")])

# (pattern of a parameter path, name of the module among the renamed tensors, names of the leaves)
_MODULES = [
    (r"visual/head/attention/out_proj", "visual.attn_pool.out_proj", DENSE),
    (r"visual/head/ln", "visual.attn_pool.ln", NORM),
    (r"visual/head/mlp/(c_\w+)", r"visual.attn_pool.mlp.\1", DENSE),
    (r"text/head", "text_projection", DENSE),
]
_PACKED = re.compile(r"visual/head/attention/([qkv])_proj/(kernel|bias)")


def is_siglip(tensors: dict[str, np.ndarray]) -> bool:
    """Return whether the names are those of a SigLIP, which no other CLIP's file has."""
    huggingface = any(name.startswith(_HUGGINGFACE_HEAD) for name in tensors)
    # Perception Encoders pool as SigLIP does, but have a layer norm before the blocks.
    others = (f"{_TRUNK}cls_token", f"{_TRUNK}norm_pre.weight")
    open_clip = f"{_TRUNK}attn_pool.latent" in tensors and not any(n in tensors for n in others)
    return huggingface or open_clip


def rename(
    tensors: dict[str, np.ndarray], tower: str
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Rename and pack tensors.

    Args:
        tower: "student"; no SigLIP's file has a teacher.

    Returns:
        Tensors by the names of ``origin``, and for each the file's own names.

    Raises:
        CheckpointMismatch: a NaFlex model.
    """
    patches = tensors.get(_HUGGINGFACE_PATCHES)
    naflex = any(name.startswith(f"{_TRUNK}embeds.") for name in tensors)
    if naflex or (patches is not None and patches.ndim == 2):
        raise CheckpointMismatch(
            "SigLIP 2 NaFlex: expected a patch embedding that is a convolution, found a linear "
            "map of flattened patches; NaFlex models are not supported, give a SigLIP 2 of a fixed "
            "resolution"
        )
    if huggingface_keys.is_huggingface(tensors):
        renamed, names = huggingface_keys.to_openai(tensors)
        for name, tensor in tensors.items():
            if new_name := _HUGGINGFACE.inwards(name):
                renamed[new_name], names[new_name] = tensor, (name,)
    else:
        renamed, names = _from_open_clip(tensors)
    shapes = {"logit_scale": (), "logit_bias": (), "visual.attn_pool.probe": (-1,)}
    for name, shape in shapes.items():
        if name in renamed and (shape or renamed[name].size == 1):
            renamed[name] = renamed[name].reshape(shape)
    positions = renamed.get("visual.positional_embedding")
    if positions is not None and positions.ndim == 3 and len(positions) == 1:
        renamed["visual.positional_embedding"] = positions[0]
    return renamed, names


def _from_open_clip(tensors: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Rename tensors and pack the head's q, k and v.

    Any other tensor of the trunk keeps its name, so that the file is refused for it.
    """
    renamed, names = {}, {}
    for name, tensor in tensors.items():
        new_name, used = _OPEN_CLIP.inwards(name), (name,)
        if packed := _PACKED_QUERY.inwards(name):
            keys = name.replace(".q.", ".kv.")
            if keys in tensors:
                new_name, used = packed, (name, keys)
                tensor = np.concatenate([tensors[part] for part in used])
        elif new_name is None and name.startswith(_TRUNK) and ".attn_pool.kv." not in name:
            new_name = name
        if new_name is not None:
            renamed[new_name], names[new_name] = tensor, used
    return renamed, names


def to_huggingface(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename tensors by the names of ``origin`` to Hugging Face's."""
    own = {_HUGGINGFACE.outwards(name): tensor for name, tensor in tensors.items()}
    own.pop(None, None)
    for name in ("logit_scale", "logit_bias"):
        tensors = tensors | {name: tensors[name].reshape(1)}
        own[name] = tensors[name]
    own[f"{_HUGGINGFACE_HEAD}probe"] = own[f"{_HUGGINGFACE_HEAD}probe"].reshape(1, 1, -1)
    return huggingface_keys.from_openai(tensors) | own


def to_open_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename tensors by the names of ``origin`` to open_clip's and timm's."""
    renamed = {}
    for name, tensor in tensors.items():
        if query := _PACKED_QUERY.outwards(name):
            width = len(tensor) // 3
            renamed[query], renamed[query.replace(".q.", ".kv.")] = tensor[:width], tensor[width:]
        elif own_name := _OPEN_CLIP.outwards(name):
            renamed[own_name] = tensor
    for name, shape in ((f"{_TRUNK}attn_pool.latent", (1, 1, -1)), (f"{_TRUNK}pos_embed", None)):
        renamed[name] = renamed[name].reshape(shape) if shape else renamed[name][None]
    return renamed


def infer_config(tensors: dict[str, np.ndarray], file_name: str) -> CLIPConfig:
    """Infer the architecture from tensors by the names of ``origin``.

    Heads, activations, eps, the rule of positions and the tokenizer are not in the tensors; they
    are placeholders, which ``siglip_configuration.complete`` replaces.

    Raises:
        CheckpointMismatch: a tensor that determines the architecture is missing or has a wrong
            rank.
    """
    where = f"{file_name} as a SigLIP (image tensors by OpenAI's names)"

    def shape(name: str, num_dims: int) -> tuple[int, ...]:
        return require_shape(tensors, name, num_dims, where)

    def blocks(prefix: str, width: int) -> tuple[int, int | None]:
        """Number of blocks, and hidden channels of their MLPs unless four times the width."""
        layers = count_blocks(tensors, rf"{re.escape(prefix)}([0-9]+)\.", file_name)
        hidden = shape(f"{prefix}0.mlp.c_fc.weight", 2)[0]
        return layers, None if hidden == 4 * width else hidden

    width, _, _, patch_size = shape("visual.conv1.weight", 4)
    rows = shape("visual.positional_embedding", 2)[0]
    grid = math.isqrt(rows)
    if grid < 1 or grid * grid != rows:
        raise CheckpointMismatch(
            f"{file_name}: visual positional embedding: expected n*n rows, found {rows}; only "
            "towers with a square grid are supported"
        )
    layers, mlp_width = blocks("visual.transformer.resblocks.", width)
    image = SigLIPImageConfig(patch_size, layers, width, openai_heads(width), mlp_width=mlp_width)
    if "text_projection.weight" not in tensors:
        raise CheckpointMismatch(
            f"{file_name}: expected SigLIP's text tower with its head (text_model.head or "
            "text.text_projection, a linear map with bias), found none; give a file of both towers "
            "of one SigLIP (models without this head, such as open_clip's i18n of SO400M, and text "
            "towers of other CLIPs are not supported)"
        )
    embed_dim, text_width = shape("text_projection.weight", 2)
    layers, mlp_width = blocks("transformer.resblocks.", text_width)
    text = SigLIPTextConfig(
        vocab_size=shape("token_embedding.weight", 2)[0],
        context_length=shape("positional_embedding", 2)[0],
        width=text_width,
        heads=openai_heads(text_width),
        layers=layers,
        mlp_width=mlp_width,
    )
    preprocessing = Preprocessing(grid * patch_size)
    logit_bias = "logit_bias" in tensors
    config = CLIPConfig(image, text, preprocessing, embed_dim, logit_bias)
    require_plausible(config, f"{file_name}: architecture", _REMEDY)
    return config


def origin(path: str, num_dims: int) -> Origin:
    """Return a parameter's source tensor; arguments as in ``clip_keys.origin``."""
    if path == "visual/head/probe":
        return Origin("visual.attn_pool.probe", Layout.SAME)
    if match := _PACKED.fullmatch(path):
        projection, leaf = match.groups()
        layout = Layout.LINEAR if leaf == "kernel" else Layout.SAME
        name = f"visual.attn_pool.in_proj_{DENSE[leaf]}"
        return Origin(name, layout, "qkv".index(projection))
    module, _, leaf = path.rpartition("/")
    for pattern, name, leaves in _MODULES:
        if (match := re.fullmatch(pattern, module)) and leaf in leaves:
            layout = Layout.LINEAR if leaf == "kernel" else Layout.SAME
            return Origin(f"{match.expand(name)}.{leaves[leaf]}", layout)
    return clip_keys.origin(path, num_dims)
