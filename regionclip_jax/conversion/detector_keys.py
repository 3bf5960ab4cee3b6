"""The heads of a fine-tuned RegionCLIP, by the reference's names.

Source: docs/reference/checkpoints.md#detector-keys. The file's class embeddings (``cls_score``,
``test_cls_score``) are not used: here they are computed from names.
"""

import numpy as np

from regionclip_jax.artifacts.detector_heads import HeadsConfig
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.models.detector_heads import MaskHead

_BOX = "roi_heads.box_predictor.bbox_pred"
_DECONV, _PREDICTOR = "roi_heads.mask_head.deconv", "roi_heads.mask_head.predictor"


def has_box_head(tensors: dict[str, np.ndarray]) -> bool:
    return f"{_BOX}.weight" in tensors


def take_heads(
    tensors: dict[str, np.ndarray], embed_dim: int, layer4_channels: int, file_name: str
) -> tuple[dict, HeadsConfig, set[str]]:
    """Extract the heads of a detector's file with heads (``has_box_head``).

    Args:
        tensors: by the file's own names.
        embed_dim, layer4_channels: of the image tower in the same file.
        file_name: name of the file in errors.

    Returns:
        Parameters by head in the form of ``artifacts.detector_heads``, their widths, and the names
        that were used.

    Raises:
        CheckpointMismatch: a tensor is missing or has another shape, such as a box regression for
            each class, which RegionCLIP's recipes never train.
    """
    used = set()

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = tensors[name].shape if name in tensors else "no such tensor"
        if found != shape:
            raise CheckpointMismatch(
                f"{file_name}: {name}: expected shape {shape}, found {found}; give a whole "
                "RegionCLIP detector, whose boxes are regressed the same way for every class"
            )
        used.add(name)
        return np.array(tensors[name], np.float32)

    weight = take(f"{_BOX}.weight", (4, embed_dim))
    heads = {"box_head": {"deltas": {"kernel": weight.T, "bias": take(f"{_BOX}.bias", (4,))}}}
    if f"{_DECONV}.weight" not in tensors:
        return heads, HeadsConfig(embed_dim, None), used
    features = MaskHead.features
    deconv = take(f"{_DECONV}.weight", (layer4_channels, features, 2, 2))
    predictor = take(f"{_PREDICTOR}.weight", (1, features, 1, 1))
    heads["mask_head"] = {
        "deconv": {
            "kernel": deconv.transpose(2, 3, 0, 1),
            "bias": take(f"{_DECONV}.bias", (features,)),
        },
        "predictor": {
            "kernel": predictor.reshape(1, features).T,
            "bias": take(f"{_PREDICTOR}.bias", (1,)),
        },
    }
    return heads, HeadsConfig(embed_dim, layer4_channels), used


def from_heads(heads: dict) -> dict[str, np.ndarray]:
    """Return the tensors of which ``take_heads`` makes these parameters."""
    deltas = heads["box_head"]["deltas"]
    tensors = {f"{_BOX}.weight": deltas["kernel"].T, f"{_BOX}.bias": deltas["bias"]}
    if "mask_head" in heads:
        deconv, predictor = heads["mask_head"]["deconv"], heads["mask_head"]["predictor"]
        tensors |= {
            f"{_DECONV}.weight": deconv["kernel"].transpose(2, 3, 0, 1),
            f"{_DECONV}.bias": deconv["bias"],
            f"{_PREDICTOR}.weight": predictor["kernel"].T[:, :, None, None],
            f"{_PREDICTOR}.bias": predictor["bias"],
        }
    return tensors
