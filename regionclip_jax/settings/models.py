"""Settings of models: which one, from where, in which type."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.fields import Section, may_change

Dtype = Literal["auto", "bfloat16", "float32"]
KeptActivations = Literal["all", "products", "block_inputs"]


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    """A CLIP model, such as the teacher, of which no gradient is taken."""

    # Name in models.presets; must agree with the card of `init_from`.
    preset: str = "RN50"
    # Model directory (scripts/convert_checkpoint.py or a training job writes one); "" starts from
    # random weights.
    init_from: str = may_change("")
    # Type of the computation: "float32", "bfloat16", or "auto": bfloat16 on GPUs and TPUs, float32
    # on CPUs. Trained parameters, their gradients, the optimizer's state, batch statistics and
    # losses are float32 in any case. A teacher keeps its kernels in this type; so does a localizer
    # that proposes, in the type of the model that it proposes for.
    dtype: Dtype = "auto"


@dataclasses.dataclass(frozen=True)
class TrainedModelSettings(ModelSettings):
    """A CLIP model that is trained."""

    # Activations that the blocks of both towers keep for the backward pass, where they are trained:
    # "all"; the outputs of convolutions and dense layers ("products"); or their inputs alone
    # ("block_inputs"), for one more forward pass. Changes memory and time: docs/large_batches.md.
    kept_activations: KeptActivations = may_change("all")


@dataclasses.dataclass(frozen=True)
class LocalizerModelSettings(Section):
    """A region proposal network to train."""

    # Name in models.localizer_presets.
    preset: str = "rn50_c4"
    # Model directory to start from: its localizer, or else (a CLIP trunk) its image tower, or an
    # ImageNet ResNet; "" starts from random weights, which needs live norms and nothing frozen.
    init_from: str = may_change("")
    # "all" of that localizer, or its "trunk" alone, such as one trained on ImageNet.
    init_part: Literal["all", "trunk"] = "trunk"
    # Batch norms "frozen" (the reference's) or "live": a random start needs live ones.
    norm: Literal["frozen", "live"] = "frozen"
    # As of a model.
    dtype: Dtype = "auto"
    # As of a trained model, of the trunk.
    kept_activations: KeptActivations = may_change("all")
