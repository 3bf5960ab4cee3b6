"""Names of EVA-02-CLIP's tensors, and the architecture of a file.

Source: docs/reference/checkpoints.md#eva-02. Two schemes of names are read: that of the original
repository (CLIPSelf has it too), and that of open_clip with a trunk of timm. Both become timm's
names below ``visual.``. The text tower is CLIP's, by OpenAI's names.

Tensors tell all sizes but the number of heads. All published EVA-02-CLIPs of these names have heads
of 64 channels, exact GELU in the text tower, and CLIP's mean and standard deviation.
"""

import dataclasses
import re

import numpy as np

from regionclip_jax.artifacts.card_fields import CheckpointMismatch, require_plausible
from regionclip_jax.conversion import clip_keys, regionclip_keys
from regionclip_jax.conversion.architecture import (
    count_blocks,
    grid_side,
    infer_text,
    require_shape,
)
from regionclip_jax.conversion.layouts import Layout, Origin
from regionclip_jax.models.eva_transformer import EVAConfig, rotary_positions
from regionclip_jax.models.patch_grid import PositionResize
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing

NOTE = (
    "no open_clip_config.json beside it: heads of 64 channels, GELU, eps, mean, standard deviation "
    "and bicubic images are those of all published EVA-02-CLIPs"
)

_HEAD_WIDTH = 64
_TRUNK = "visual.trunk."
# open_clip keeps them outside of either tower.
_OUTSIDE = ("logit_scale", "logit_bias")
# Names of the original repository in a block -> timm's.
_RENAMED = {
    "attn.q_bias": "attn.q_proj.bias",
    "attn.v_bias": "attn.v_proj.bias",
    "attn.inner_attn_ln.": "attn.norm.",
    "mlp.w1.": "mlp.fc1_g.",
    "mlp.w2.": "mlp.fc1_x.",
    "mlp.w3.": "mlp.fc2.",
    "mlp.ffn_ln.": "mlp.norm.",
}
_BLOCK = re.compile(r"(visual\.blocks\.\d+\.)(.+)")
# (pattern of a module's path, its name by timm's names)
_MODULES = [
    (r"visual/patch_embedding", r"visual.patch_embed.proj"),
    (r"visual/ln_post", r"visual.norm"),
    (r"visual/projection", r"visual.head"),
    (r"visual/blocks/block(\d+)/ln_(\d)", r"visual.blocks.\1.norm\2"),
    (r"visual/blocks/block(\d+)/attention/([qkv]_proj)", r"visual.blocks.\1.attn.\2"),
    (r"visual/blocks/block(\d+)/attention/ln_inner", r"visual.blocks.\1.attn.norm"),
    (r"visual/blocks/block(\d+)/attention/out_proj", r"visual.blocks.\1.attn.proj"),
    (r"visual/blocks/block(\d+)/mlp/gate", r"visual.blocks.\1.mlp.fc1_g"),
    (r"visual/blocks/block(\d+)/mlp/value", r"visual.blocks.\1.mlp.fc1_x"),
    (r"visual/blocks/block(\d+)/mlp/ln_inner", r"visual.blocks.\1.mlp.norm"),
    (r"visual/blocks/block(\d+)/mlp/c_proj", r"visual.blocks.\1.mlp.fc2"),
]
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_SINGLE = {
    "visual/class_embedding": "visual.cls_token",
    "visual/positional_embedding": "visual.pos_embed",
}


def is_original(tensors: dict[str, np.ndarray]) -> bool:
    """Return whether the names are those of the original repository."""
    return "visual.blocks.0.attn.q_bias" in tensors


def is_timm(tensors: dict[str, np.ndarray]) -> bool:
    """Return whether the names are those of open_clip with an EVA trunk of timm."""
    block = f"{_TRUNK}blocks.0.attn."
    # The second is a trunk of packed queries, keys and values, which ``infer_config`` refuses.
    return f"{block}q_proj.weight" in tensors or f"{block}q_bias" in tensors


def is_eva(tensors: dict[str, np.ndarray]) -> bool:
    return is_original(tensors) or is_timm(tensors)


def rename(
    tensors: dict[str, np.ndarray], tower: str
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Rename the image tower's tensors to timm's names, and the text tower's to OpenAI's.

    Returns:
        Tensors, and for each the file's own name. Class token and positions lose their first
        dimension.

    Raises:
        CheckpointMismatch: two tensors have one name.
    """
    if "logit_scale" in tensors:
        # Some files have one more in the text tower.
        tensors = {name: x for name, x in tensors.items() if name != "text.logit_scale"}
    openai, own_names = regionclip_keys.to_openai(tensors, tower)
    prefix = _TRUNK if is_timm(tensors) else "visual."
    renamed, names = {}, {}
    for name, tensor in openai.items():
        new_name = f"visual.{name.removeprefix(prefix)}" if name.startswith(prefix) else name
        if match := _BLOCK.fullmatch(new_name):
            block, rest = match.groups()
            for old, new in _RENAMED.items():
                if rest.startswith(old):
                    rest = new + rest.removeprefix(old)
            new_name = block + rest
        if new_name in renamed:
            raise CheckpointMismatch(
                f"{names[new_name][0]} and {own_names[name][0]}: expected one of these tensors, "
                "found both; give a whole checkpoint of one model"
            )
        if new_name in _SINGLE.values() and tensor.ndim == 3 and len(tensor) == 1:
            tensor = tensor[0, 0] if new_name == "visual.cls_token" else tensor[0]
        renamed[new_name], names[new_name] = tensor, own_names[name]
    return renamed, names


def to_open_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the tensors of ``rename`` to those of open_clip with a trunk of timm."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("visual."):
            own_name = _TRUNK + name.removeprefix("visual.")
        else:
            own_name = name if name in _OUTSIDE else f"text.{name}"
        if name in _SINGLE.values():
            tensor = tensor.reshape(1, -1, tensor.shape[-1])
        renamed[own_name] = tensor
    return renamed


def infer_original(tensors: dict[str, np.ndarray], file_name: str) -> CLIPConfig:
    """Infer as ``infer_config``, with CLIPSelf's rule for positions at other grids."""
    return infer_config(tensors, file_name, "bicubic")


def infer_config(
    tensors: dict[str, np.ndarray],
    file_name: str,
    position_resize: PositionResize = "bicubic_antialiased",
) -> CLIPConfig:
    """Infer an EVA-02-CLIP's architecture from the tensors of ``rename``.

    Raises:
        CheckpointMismatch: a tensor that determines the architecture is missing or has a wrong
            shape, or the tower is another EVA's.
    """
    where = f"{file_name} as an EVA-02-CLIP (by timm's names)"

    def shape(name: str, num_dims: int) -> tuple[int, ...]:
        return require_shape(tensors, name, num_dims, where)

    if "visual.blocks.0.attn.qkv.weight" in tensors:
        raise CheckpointMismatch(
            f"{where}: expected separate queries, keys and values, found "
            "visual.blocks.0.attn.qkv.weight, as in EVA-01 and EVA-02-E; only EVA-02-CLIP B and L "
            "can be converted"
        )
    width, _, _, patch_size = shape("visual.patch_embed.proj.weight", 4)
    if width % _HEAD_WIDTH:
        raise CheckpointMismatch(
            f"{where}: visual.patch_embed.proj.weight: expected a multiple of {_HEAD_WIDTH} "
            f"channels, the width of a head, found {width}; only EVA-02-CLIP B and L can be "
            "converted"
        )
    side = grid_side(shape("visual.pos_embed", 2)[0], file_name)
    image = EVAConfig(
        patch_size,
        layers=count_blocks(tensors, r"visual\.blocks\.([0-9]+)\.", file_name),
        width=width,
        heads=width // _HEAD_WIDTH,
        mlp_width=shape("visual.blocks.0.mlp.fc1_g.weight", 2)[0],
        position_resize=position_resize,
    )
    text = infer_text(tensors, file_name)
    config = CLIPConfig(
        image,
        dataclasses.replace(text, activation="gelu"),
        Preprocessing(side * patch_size, resize="bicubic_truncate"),
        embed_dim=shape("visual.head.weight", 2)[0],
        logit_bias="logit_bias" in tensors,
    )
    require_plausible(config, f"{file_name}: architecture", "give a whole checkpoint of one model")
    _require_rotary_table(tensors, image, side, where)
    return config


def origin(path: str, num_dims: int) -> Origin:
    """Return a parameter's source tensor by the names of ``rename``.

    Args:
        path: of the parameter below its collection.
        num_dims: of the flax parameter; it distinguishes kernels of convolutions and linear maps.

    Raises:
        KeyError: no rule matches this path.
    """
    if not path.startswith("visual/"):
        return clip_keys.origin(path, num_dims)
    if path in _SINGLE:
        return Origin(_SINGLE[path], Layout.SAME)
    module, _, leaf = path.rpartition("/")
    for pattern, name in _MODULES:
        if match := re.fullmatch(pattern, module):
            layout = Layout.SAME
            if leaf == "kernel":
                layout = Layout.CONVOLUTION if num_dims == 4 else Layout.LINEAR
            return Origin(f"{match.expand(name)}.{_LEAVES[leaf]}", layout)
    raise KeyError(f"{path}: no rule of conversion/eva_keys.py names the tensor it comes from")


def _require_rotary_table(tensors, config: EVAConfig, side: int, where: str) -> None:
    """Refuse a file whose table of rotary positions, if it has one, is not that of ``config``."""
    name = "visual.rope.freqs_cos"
    if name not in tensors:
        return
    found = tensors[name]
    same = found.shape == (side**2, _HEAD_WIDTH)
    if same:
        expected = np.asarray(rotary_positions(config, side, side).cos)[0, 1:].repeat(2, 1)
        # Half precision is exact to 5e-4, bfloat16 to 4e-3.
        same = np.allclose(found.astype(np.float32), expected, rtol=0, atol=1e-2)
    if not same:
        raise CheckpointMismatch(
            f"{where}: {name}: expected the angles of heads of {_HEAD_WIDTH} channels on a grid of "
            f"{side} x {side}, with {config.rotary_grid} positions along a side, found others; "
            "only EVA-02-CLIP B and L can be converted"
        )
