"""Detectron2's names of a localizer's tensors, for every parameter path of ``models.localizer``.

Source: docs/reference/checkpoints.md#loading, docs/reference/checkpoints.md#c4-localizer. A
detector's own backbone and proposal generator have bare names. In a fine-tuned RegionCLIP
``backbone.`` is the recognition tower, and the localizer's names begin with ``offline_``.
"""

import re
from collections.abc import Callable

import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.layouts import DENSE, NORM, Layout, Origin
from regionclip_jax.models.localizer import LocalizerConfig

BACKBONE, HEAD = "backbone.", "proposal_generator.rpn_head."
_OFFLINE = "offline_"

# (pattern of a parameter path, name of the module, names of the leaves); T is the trunk's prefix.
_DETECTRON = [
    (r"trunk/stem/conv1", r"Tstem.conv1", DENSE),
    (r"trunk/stem/norm1", r"Tstem.conv1.norm", NORM),
    (r"trunk/res(\d)/block(\d+)/conv(\d)", r"Tres\1.\2.conv\3", DENSE),
    (r"trunk/res(\d)/block(\d+)/norm(\d)", r"Tres\1.\2.conv\3.norm", NORM),
    (r"trunk/res(\d)/block(\d+)/shortcut_conv", r"Tres\1.\2.shortcut", DENSE),
    (r"trunk/res(\d)/block(\d+)/shortcut_norm", r"Tres\1.\2.shortcut.norm", NORM),
]
_CLIP = [
    (r"trunk/stem/conv(\d)", r"Tconv\1", DENSE),
    (r"trunk/stem/norm(\d)", r"Tbn\1", NORM),
    (r"trunk/layer(\d)/block(\d+)/conv(\d)", r"Tlayer\1.\2.conv\3", DENSE),
    (r"trunk/layer(\d)/block(\d+)/norm(\d)", r"Tlayer\1.\2.bn\3", NORM),
    (r"trunk/layer(\d)/block(\d+)/downsample_conv", r"Tlayer\1.\2.downsample.0", DENSE),
    (r"trunk/layer(\d)/block(\d+)/downsample_norm", r"Tlayer\1.\2.downsample.1", NORM),
]
_PYRAMID = [
    (r"pyramid/(lateral|output)(\d)", BACKBONE + r"fpn_\1\2", DENSE),
    (r"pyramid/(lateral|output)(\d)_norm", BACKBONE + r"fpn_\1\2.norm", NORM),
]
_PREDICTORS = [
    (r"head/objectness", HEAD + "objectness_logits", DENSE),
    (r"head/deltas", HEAD + "anchor_deltas", DENSE),
]


def trunk_prefix(has_pyramid: bool) -> str:
    """Return the prefix of the names of the trunk's tensors."""
    return f"{BACKBONE}bottom_up." if has_pyramid else BACKBONE


def to_bare_names(
    tensors: dict[str, np.ndarray], file_name: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Extract the localizer of a file; ``file_name`` is for errors.

    Returns:
        Its tensors as ``backbone.*`` and ``proposal_generator.*``, and the file's own name of each.

    Raises:
        CheckpointMismatch: the file has no localizer.
    """
    offline = any(name.startswith(_OFFLINE + HEAD) for name in tensors)
    if not offline and not any(name.startswith(HEAD) for name in tensors):
        raise CheckpointMismatch(
            f"{file_name}: expected a localizer ({HEAD}* with a backbone.*, or both with "
            f"{_OFFLINE}), found tensors such as {list(tensors)[:3]}; give RegionCLIP's rpn_*.pth "
            "or another R-CNN of detectron2"
        )
    prefix = _OFFLINE if offline else ""
    names = {
        name.removeprefix(prefix): name
        for name in tensors
        if name.startswith((prefix + BACKBONE, prefix + "proposal_generator."))
    }
    return {bare: tensors[name] for bare, name in names.items()}, names


def to_offline_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the localizer's tensors to those beside a recognition tower."""
    return {f"{_OFFLINE}{name}": tensor for name, tensor in tensors.items()}


# Names of an ImageNet ResNet (MSRA's R-50.pkl) in Caffe2 and in detectron2.
_CAFFE2 = [
    (r"conv1_w", "stem.conv1.weight"),
    (r"res_conv1_bn_([sb])", r"stem.conv1.norm.\1"),
    (r"res(\d)_(\d+)_branch1_w", r"res\1.\2.shortcut.weight"),
    (r"res(\d)_(\d+)_branch1_bn_([sb])", r"res\1.\2.shortcut.norm.\3"),
    (r"res(\d)_(\d+)_branch2([abc])_w", r"res\1.\2.conv\3.weight"),
    (r"res(\d)_(\d+)_branch2([abc])_bn_([sb])", r"res\1.\2.conv\3.norm.\4"),
]
_CAFFE2_LEAVES = {"norm.s": "norm.weight", "norm.b": "norm.bias"}
# Caffe2 folds its statistics into scale and bias: mean 0 and, with eps, variance 1 remain.
_FOLDED_VARIANCE = np.float32(1 - 1e-5)


def trunk_from_caffe2(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict]:
    """Rename an ImageNet ResNet with Caffe2's names (MSRA's ``R-50.pkl``).

    The reference starts its localizers from it (docs/reference/configuration.md#localizers).

    Returns:
        Its tensors by detectron2's names of a trunk (``backbone.res2.0.conv1.weight``), with the
        statistics of a folded norm; and the file's own name of each renamed tensor. Both are empty
        if the names are not Caffe2's.
    """
    renamed, names = {}, {}
    for own_name, tensor in tensors.items():
        for pattern, name in _CAFFE2:
            if match := re.fullmatch(pattern, own_name):
                name = BACKBONE + match.expand(name)
                name = re.sub("conv([abc])", lambda m: f"conv{'abc'.index(m[1]) + 1}", name)
                for ending, leaf in _CAFFE2_LEAVES.items():
                    if name.endswith(ending):
                        name = name.removesuffix(ending) + leaf
                renamed[name], names[name] = tensor, own_name
    for name in [name for name in renamed if name.endswith("norm.weight")]:
        norm = name.removesuffix("weight")
        renamed[f"{norm}running_mean"] = np.zeros_like(renamed[name])
        renamed[f"{norm}running_var"] = np.full_like(renamed[name], _FOLDED_VARIANCE)
    return renamed, names


def origins(config: LocalizerConfig) -> Callable[[str, int], Origin]:
    """Return ``(path below its collection, number of dimensions) -> Origin`` for this variant.

    The function raises KeyError if no rule matches a path: a module was added to ``models`` and not
    here.
    """
    trunk = trunk_prefix(config.pyramid_channels is not None)
    rules = _CLIP if config.trunk == "clip" else _DETECTRON
    # Detectron2 numbers the head's convolutions only if there is more than one.
    conv = HEAD + (r"conv.conv\1" if config.head_convs > 1 else "conv")
    modules = [*rules, *_PYRAMID, *_PREDICTORS, (r"head/conv(\d)", conv, DENSE)]

    def origin(path: str, num_dims: int) -> Origin:
        module, _, leaf = path.rpartition("/")
        for pattern, name, leaves in modules:
            match = re.fullmatch(pattern, module)
            if match and leaf in leaves:
                name = re.sub("^T", trunk, match.expand(name))
                layout = Layout.CONVOLUTION if num_dims == 4 else Layout.SAME
                return Origin(f"{name}.{leaves[leaf]}", layout)
        raise KeyError(
            f"{path}: no rule of conversion/localizer_keys.py names the tensor it comes from"
        )

    return origin
