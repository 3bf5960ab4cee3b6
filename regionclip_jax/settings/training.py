"""Settings of the parts of a training beside models and data: optimizer, run, concept pool."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.fields import (
    ConfigError,
    Count,
    Momentum,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    Whole,
    may_change,
)
from regionclip_jax.settings.regions import Templates


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Section):
    """Optimizer, schedule and frozen parameters; the defaults are those of the paper's pretraining.

    Rates are for the recipe's batch size and are not scaled to another.
    """

    # "sgd" (the reference's, coupled decay) or "adamw".
    kind: Literal["sgd", "adamw"] = "sgd"
    # Peak of the learning rate.
    learning_rate: NotNegative = 0.002
    # "multistep" or "cosine".
    schedule: Literal["multistep", "cosine"] = "multistep"
    # Multistep only: steps at which the rate is multiplied by gamma.
    boundaries: tuple[Whole, ...] = (300_000, 525_000)
    gamma: Positive = 0.1
    # Multistep only: initial factor of the warm-up.
    warmup_factor: Share = 0.001
    # Steps of linear warm-up.
    warmup_steps: Whole = 1000
    # Momentum of sgd, beta1 of adamw.
    momentum: Momentum = 0.9
    # Adamw only: decay of the mean of squared gradients.
    beta2: Momentum = 0.999
    # Adamw only: summand of the root of that mean.
    epsilon: Positive = 1e-8
    # Weight decay.
    weight_decay: NotNegative = 1e-4
    # Largest L2 norm of each gradient tensor; None for no clipping.
    clip_per_tensor_norm: Positive | None = None
    # Largest L2 norm of the gradients of all tensors together; None for no clipping.
    clip_global_norm: Positive | None = None
    # Parameters whose path matches one of these regular expressions are not decayed.
    no_decay_patterns: tuple[str, ...] = ()
    # Parameters whose path matches one of these regular expressions are not trained.
    frozen_patterns: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ConfigError(
                f"boundaries: expected steps that increase, found {self.boundaries}; sort them"
            )

    def require_shorter_warmup(self, num_steps: int) -> None:
        """Refuse a cosine schedule whose warm-up is not shorter than the run.

        Raises:
            ConfigError: it is not.
        """
        if self.schedule == "cosine" and self.warmup_steps >= num_steps:
            raise ConfigError(
                f"optimizer.warmup_steps: {self.warmup_steps} steps of warm-up in a run of "
                f"{num_steps}; lower it, or raise run.num_steps"
            )


@dataclasses.dataclass(frozen=True)
class RunSettings(Section):
    """Length, batch size, and intervals of a run."""

    # Number of updates. A run with a cosine schedule cannot change it on resume.
    num_steps: Count = may_change(600_000)
    # Images of the global batch, which is sharded over all devices.
    batch_size: Count = 96
    # Devices that share one copy of parameters and optimizer state; 1: each device has its own.
    fsdp: Count = may_change(1)
    # Seed of every random draw of the run.
    seed: Seed = 0
    # Steps between two log lines.
    log_every: Count = may_change(50)
    # Steps between two checkpoints, and number of newest checkpoints to keep.
    checkpoint_every: Count = may_change(5000)
    checkpoints_to_keep: Count = may_change(3)


@dataclasses.dataclass(frozen=True)
class ConceptSettings(Section):
    """Concept pool."""

    # Text file, one name per line (a count after a tab or comma is ignored), e.g. the nouns of the
    # captions (paper: 4,764 from COCO's); "" for the names of the synthetic scenes.
    names_file: str = may_change("")
    # "clip" for the 81 prompts of the paper, "plain" for a few short ones.
    templates: Templates = "clip"
