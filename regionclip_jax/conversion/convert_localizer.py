"""Conversion of localizers, and of ImageNet ResNets for them to start from.

Every parameter has its tensor, or the file is refused. Numbers are copied
(docs/reference/checkpoints.md#layouts).
"""

from pathlib import Path

from regionclip_jax.artifacts import model_checkpoint
from regionclip_jax.artifacts.localizer_checkpoint import (
    abstract_localizer,
    abstract_trunk,
    load_localizer,
    save_localizer,
    save_trunk,
)
from regionclip_jax.artifacts.model_card import CheckpointMismatch, LocalizerCard
from regionclip_jax.conversion import localizer_keys, regionclip_keys
from regionclip_jax.conversion.architecture import infer_localizer_config
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.layouts import build_variables
from regionclip_jax.conversion.report import Conversion, origin_of, report


def convert_localizer(source: str | Path, output: str | Path) -> Conversion:
    """Convert the localizer of a detectron2 checkpoint into the model directory ``output``.

    Args:
        source: RegionCLIP's ``rpn_*.pth`` or another R-CNN of detectron2, with its backbone and
            proposal generator; or a fine-tuned RegionCLIP, with its ``offline_`` ones; or a model
            directory with a localizer, which is copied.
        output: a model directory, whose localizer is replaced; or a new directory for it alone.

    Raises:
        CheckpointMismatch: the file has no localizer, lacks tensors of it, or has tensors of other
            shapes.
    """
    source = Path(source)
    if source.is_dir():
        variables, card = load_localizer(source)
        save_localizer(output, variables, card)
        num_tensors = len(model_checkpoint.flatten(variables))
        return Conversion(card, num_tensors, (), (), (f"copied from {source}",))
    tensors = regionclip_keys.strip_common_prefix(read_tensors(source))
    renamed, names = localizer_keys.to_bare_names(tensors, source.name)
    config = infer_localizer_config(renamed, source.name)
    variables, used = build_variables(
        model_checkpoint.traced(abstract_localizer, config, source.name),
        localizer_keys.origins(config),
        renamed,
        where=f"{source.name} as a localizer, {config.variant}",
        remedy="check that the file is one whole R-CNN of detectron2 with a ResNet of bottlenecks "
        "and five sizes and three ratios of anchors",
    )
    card = LocalizerCard(config, origin_of(source))
    save_localizer(output, variables, card)
    return report(card, tensors, {names[name] for name in used}, notes=[])


def convert_trunk(source: str | Path, output: str | Path) -> Conversion:
    """Convert an ImageNet ResNet to ``output/trunk``, an initialisation for a localizer.

    Args:
        source: detectron2's ``ImageNetPretrained/MSRA/R-50.pkl`` or another ResNet of bottlenecks
            with Caffe2's names. Its first 1x1 convolution strides and its input is BGR, as in the
            reference's localizers. (Torchvision's ResNet strides in the 3x3 convolution and reads
            RGB: its shapes fit, but its features differ.)
        output: a directory; an existing trunk is replaced.

    Raises:
        CheckpointMismatch: the file has other names, lacks tensors, or has tensors of other shapes.
    """
    source = Path(source)
    tensors = read_tensors(source)
    renamed, names = localizer_keys.trunk_from_caffe2(tensors)
    if not renamed:
        raise CheckpointMismatch(
            f"{source}: expected an ImageNet ResNet with Caffe2's names (conv1_w, "
            f"res2_0_branch2a_w), found tensors such as {list(tensors)[:3]}; give detectron2's "
            "ImageNetPretrained/MSRA/R-50.pkl (torchvision's ResNet strides elsewhere and would "
            "not compute the same)"
        )
    config = infer_localizer_config(renamed, source.name)
    variables, used = build_variables(
        model_checkpoint.traced(abstract_trunk, config, source.name),
        # The rules of a localizer have paths that begin with ``trunk/``.
        lambda path, num_dims: localizer_keys.origins(config)(f"trunk/{path}", num_dims),
        renamed,
        where=f"{source.name} as a ResNet of blocks {config.blocks}",
        remedy="check that the file is one whole ResNet of bottlenecks",
    )
    card = LocalizerCard(config, origin_of(source))
    save_trunk(output, variables, card)
    return report(card, tensors, {names[name] for name in used if name in names}, notes=[])
