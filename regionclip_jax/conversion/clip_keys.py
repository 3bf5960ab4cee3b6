"""OpenAI's names and layouts of CLIP's tensors, for every parameter path of ``models.clip``.

Source: docs/reference/checkpoints.md#rn50-inventory, docs/reference/checkpoints.md#layouts. The map
goes from our tree to the file: each leaf has one source tensor. So a comparison of names finds both
missing and unused tensors.
"""

import re

from regionclip_jax.conversion.layouts import DENSE, NORM, Layout, Origin

# (pattern of a parameter path, name of the module in OpenAI's state dict, names of the leaves)
_MODULES = [
    (r"visual/stem/conv(\d)", r"visual.conv\1", DENSE),
    (r"visual/stem/norm(\d)", r"visual.bn\1", NORM),
    (r"visual/layer(\d)/block(\d+)/conv(\d)", r"visual.layer\1.\2.conv\3", DENSE),
    (r"visual/layer(\d)/block(\d+)/norm(\d)", r"visual.layer\1.\2.bn\3", NORM),
    (r"visual/layer(\d)/block(\d+)/downsample_conv", r"visual.layer\1.\2.downsample.0", DENSE),
    (r"visual/layer(\d)/block(\d+)/downsample_norm", r"visual.layer\1.\2.downsample.1", NORM),
    (r"visual/attention_pool/([qkvc]_proj)", r"visual.attnpool.\1", DENSE),
    (r"visual/patch_embedding", r"visual.conv1", DENSE),
    (r"visual/(ln_pre|ln_post)", r"visual.\1", NORM),
    (r"text/ln_final", r"ln_final", NORM),
    (r"(visual/|text/)blocks/block(\d+)/(ln_\d)", r"\1transformer.resblocks.\2.\3", NORM),
    (
        r"(visual/|text/)blocks/block(\d+)/attention/out_proj",
        r"\1transformer.resblocks.\2.attn.out_proj",
        DENSE,
    ),
    (r"(visual/|text/)blocks/block(\d+)/mlp/(c_\w+)", r"\1transformer.resblocks.\2.mlp.\3", DENSE),
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
    "logit_bias": "logit_bias",
}
_TOWER = {"visual/": "visual.", "text/": ""}


def origin(path: str, num_dims: int) -> Origin:
    """Return a parameter's source tensor in OpenAI's state dict.

    Args:
        path: of the parameter below its collection, such as ``visual/layer1/block0/conv1/kernel``.
        num_dims: of the flax parameter; it distinguishes kernels of convolutions and linear maps.

    Raises:
        KeyError: no rule matches this path: a module was added to ``models`` and not here.
    """
    if path in _SINGLE:
        return Origin(_SINGLE[path], Layout.SAME)
    if match := _PACKED.fullmatch(path):
        tower, block, projection, leaf = match.groups()
        name = f"{_TOWER[tower]}transformer.resblocks.{block}.attn.in_proj_{DENSE[leaf]}"
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
