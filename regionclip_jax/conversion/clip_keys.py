"""OpenAI's names and layouts of CLIP's tensors, for every parameter path of ``models.clip``.

Spec: models_pretrain 6.0, 6.6. The map is driven by our tree: each leaf knows the one tensor it is
made of, so what a file lacks and what it has left over both follow by comparing sets of names.
"""

import re
from enum import Enum
from typing import NamedTuple

import numpy as np


class Layout(Enum):
    """How a torch tensor becomes a flax one."""

    SAME = "as it is"
    LINEAR = "[out, in] -> [in, out]"
    CONVOLUTION = "OIHW -> HWIO"


class Origin(NamedTuple):
    """The tensor a parameter comes from: ``third`` q, k, v = 0, 1, 2 of a packed one, else None."""

    name: str
    layout: Layout
    third: int | None = None


_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_DENSE = {"kernel": "weight", "bias": "bias"}

# (pattern of a parameter path, name of the module in OpenAI's state dict, names of the leaves)
_MODULES = [
    (r"visual/stem/conv(\d)", r"visual.conv\1", _DENSE),
    (r"visual/stem/norm(\d)", r"visual.bn\1", _NORM),
    (r"visual/layer(\d)/block(\d+)/conv(\d)", r"visual.layer\1.\2.conv\3", _DENSE),
    (r"visual/layer(\d)/block(\d+)/norm(\d)", r"visual.layer\1.\2.bn\3", _NORM),
    (r"visual/layer(\d)/block(\d+)/downsample_conv", r"visual.layer\1.\2.downsample.0", _DENSE),
    (r"visual/layer(\d)/block(\d+)/downsample_norm", r"visual.layer\1.\2.downsample.1", _NORM),
    (r"visual/attention_pool/([qkvc]_proj)", r"visual.attnpool.\1", _DENSE),
    (r"visual/patch_embedding", r"visual.conv1", _DENSE),
    (r"visual/(ln_pre|ln_post)", r"visual.\1", _NORM),
    (r"text/ln_final", r"ln_final", _NORM),
    (r"(visual/|text/)blocks/block(\d+)/(ln_\d)", r"\1transformer.resblocks.\2.\3", _NORM),
    (
        r"(visual/|text/)blocks/block(\d+)/attention/out_proj",
        r"\1transformer.resblocks.\2.attn.out_proj",
        _DENSE,
    ),
    (r"(visual/|text/)blocks/block(\d+)/mlp/(c_\w+)", r"\1transformer.resblocks.\2.mlp.\3", _DENSE),
]
_PACKED = re.compile(r"(visual/|text/)blocks/block(\d+)/attention/([qkv])_proj/(kernel|bias)")
_SINGLE = {
    "visual/attention_pool/positional_embedding": "visual.attnpool.positional_embedding",
    "visual/class_embedding": "visual.class_embedding",
    "visual/positional_embedding": "visual.positional_embedding",
    "visual/projection": "visual.proj",
    "text/token_embedding": "token_embedding.weight",
    "text/positional_embedding": "positional_embedding",
    "text/projection": "text_projection",
    "logit_scale": "logit_scale",
}
_TOWER = {"visual/": "visual.", "text/": ""}


def origin(path: str, num_dims: int) -> Origin:
    """The tensor of OpenAI's state dict that a parameter is made of.

    Args:
        path: of the parameter below its collection, such as ``visual/layer1/block0/conv1/kernel``.
        num_dims: of the flax parameter; it tells a convolution's kernel from a linear map's.

    Raises:
        KeyError: no rule names this path: a module was added to ``models`` and not here.
    """
    if path in _SINGLE:
        return Origin(_SINGLE[path], Layout.SAME)
    if match := _PACKED.fullmatch(path):
        tower, block, projection, leaf = match.groups()
        name = f"{_TOWER[tower]}transformer.resblocks.{block}.attn.in_proj_{_DENSE[leaf]}"
        layout = Layout.LINEAR if leaf == "kernel" else Layout.SAME
        return Origin(name, layout, "qkv".index(projection))
    module, _, leaf = path.rpartition("/")
    for pattern, name, leaves in _MODULES:
        match = re.fullmatch(pattern, module)
        if match and leaf in leaves:
            name = re.sub(r"^(visual/|text/)", lambda m: _TOWER[m[0]], match.expand(name))
            layout = Layout.SAME
            if leaf == "kernel":
                layout = Layout.CONVOLUTION if num_dims == 4 else Layout.LINEAR
            return Origin(f"{name}.{leaves[leaf]}", layout)
    raise KeyError(f"{path}: no rule of conversion/clip_keys.py names the tensor it comes from")


def source_shape(shape: tuple[int, ...], where: Origin) -> tuple[int, ...]:
    """Shape the torch tensor must have for a parameter of ``shape``."""
    if where.layout is Layout.CONVOLUTION:
        shape = (shape[3], shape[2], shape[0], shape[1])
    elif where.layout is Layout.LINEAR:
        shape = shape[::-1]
    if where.third is not None:
        shape = (3 * shape[0], *shape[1:])
    return tuple(shape)


def to_parameter(tensor: np.ndarray, where: Origin) -> np.ndarray:
    """A torch tensor in our layout, as contiguous fp32: exact for fp16, bf16 and fp32."""
    if where.third is not None:
        rows = tensor.shape[0] // 3
        tensor = tensor[where.third * rows : (where.third + 1) * rows]
    if where.layout is Layout.CONVOLUTION:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif where.layout is Layout.LINEAR:
        tensor = tensor.T
    return np.array(tensor, np.float32, order="C")
