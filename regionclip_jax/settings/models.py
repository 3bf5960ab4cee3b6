"""Settings of models: architecture, initial weights, type of the computation."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.fields import Section, may_change

Dtype = Literal["auto", "bfloat16", "float32"]
RematPolicy = Literal["all", "products", "block_inputs"]


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    """CLIP model without gradients, such as the teacher."""

    # Name in models.presets; must agree with the card of `init_from`.
    preset: str = "RN50"
    # Model directory (scripts/convert_checkpoint.py or a training job writes one); "" starts from
    # random weights.
    init_from: str = may_change("")
    # Type of the computation: "float32", "bfloat16", or "auto": bfloat16 on GPUs and TPUs, float32
    # on CPUs. Trained parameters, their gradients, the optimizer's state, batch statistics and
    # losses are always float32. A teacher's kernels are stored in this type; a frozen localizer's
    # kernels in the type of its model.
    dtype: Dtype = "auto"
    # True: regions are averages of the map's embeddings at unit length, for models that the job
    # "distill" wrote. A ResNet's map has no embeddings.
    normalize_map: bool = False


@dataclasses.dataclass(frozen=True)
class TrainedModelSettings(ModelSettings):
    """Trained CLIP model."""

    # Remat policy of the trained blocks of both towers: store "all" activations; the outputs of
    # convolutions and dense layers ("products"); or only the inputs of blocks ("block_inputs"), at
    # the cost of one more forward pass. Changes memory and time: docs/large_batches.md.
    remat: RematPolicy = may_change("all")


@dataclasses.dataclass(frozen=True)
class LocalizerModelSettings(Section):
    """Trained localizer (region proposal network)."""

    # Name in models.presets.
    preset: str = "rn50_c4"
    # Model directory to start from: its localizer, its image tower (for a CLIP trunk), or an
    # ImageNet ResNet. "" starts from random weights, which needs live norms and no frozen layers.
    init_from: str = may_change("")
    # Use "all" of that localizer, or only its "trunk", such as one trained on ImageNet.
    init_part: Literal["all", "trunk"] = "trunk"
    # Batch norms "frozen" (the reference's) or "live": random weights need live norms.
    norm: Literal["frozen", "live"] = "frozen"
    # As in the settings of a model.
    dtype: Dtype = "auto"
    # Remat policy of the trunk, as in the settings of a trained model.
    remat: RematPolicy = may_change("all")
