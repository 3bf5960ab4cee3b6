"""All comparisons with the reference, in families that run separately.

``FAMILIES`` is for scripts. The caller sets the devices, the precision of matrix products
(``jax.default_matmul_precision``) and the compute dtype, and reads errors and tolerances.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from parity import detections, eva, finetuning, localizers, losses, ops, pretraining, towers
from parity.comparison import Comparison

__all__ = ["FAMILIES", "Comparison", "Family"]


class Family(NamedTuple):
    """Related comparisons.

    ``compare`` takes the compute dtype of models or features, jnp.float32 or jnp.bfloat16. A
    family that computes only in float32 ignores it and has ``takes_dtype`` False.
    """

    compare: Callable[[Any], list[Comparison]]
    takes_dtype: bool


def _in_fp32_only(compare: Callable[[], list[Comparison]]) -> Family:
    return Family(lambda dtype: compare(), takes_dtype=False)


# In the order of importance, as a script may run out of time.
FAMILIES: dict[str, Family] = {
    "roi_align": Family(ops.compare_roi_align, takes_dtype=True),
    "nms": _in_fp32_only(ops.compare_nms),
    "soft_nms": _in_fp32_only(ops.compare_soft_nms),
    "box_coder": _in_fp32_only(ops.compare_box_coder),
    "iou": _in_fp32_only(ops.compare_iou),
    "proposals": _in_fp32_only(ops.compare_proposals),
    "resnet": Family(towers.compare_resnet, takes_dtype=True),
    "text": Family(towers.compare_text, takes_dtype=True),
    "vit": Family(towers.compare_vit, takes_dtype=True),
    "eva": Family(eva.compare_eva, takes_dtype=True),
    "localizer": Family(localizers.compare_localizer, takes_dtype=True),
    "losses": _in_fp32_only(losses.compare_losses),
    "pretraining": Family(pretraining.compare_pretraining, takes_dtype=True),
    "finetuning": Family(finetuning.compare_finetuning, takes_dtype=True),
    "detections": Family(detections.compare_detections, takes_dtype=True),
}
