"""Settings of evaluations: average recall of proposals, recognition and detection."""

import dataclasses
from typing import Literal

from regionclip_jax.settings.data import EvaluatedClasses, EvaluatedImages
from regionclip_jax.settings.fields import (
    ConfigError,
    PartOfSide,
    require_stated,
    unstated,
)
from regionclip_jax.settings.regions import DetectionSettings, ProposalSettings, Templates


@dataclasses.dataclass(frozen=True)
class RecallSettings(EvaluatedImages):
    """Average recall of a localizer's proposals."""

    # Proposals of the localizer.
    proposals: ProposalSettings = ProposalSettings(pre_nms_topk=6000, nms_threshold=0.7)

    def __post_init__(self):
        super().__post_init__()
        require_stated(self.proposals, "proposals")


def own_detection(chunk: int) -> DetectionSettings:
    """Return settings that the evaluated model's directory completes, with regions in chunks."""
    return dataclasses.replace(unstated(DetectionSettings), regions_per_chunk=chunk)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(EvaluatedImages):
    """Zero-shot recognition of given boxes, or detection, with the official metrics.

    In ``proposals`` and ``detection``, None is the number of the evaluated model's directory; any
    other value replaces it.
    """

    # Classes of the data, or of its split, that compete for every region: "all", as in the
    # reference, or those "with_boxes" in the evaluated images. A class without a box, such as a
    # parent category that an export tool lists, can only take regions from the others.
    classes: EvaluatedClasses = "all"
    # Class embeddings (.npz); "" embeds the data's class names with the model's text tower.
    vocabulary: str = ""
    # "clip" for the 81 prompts of the paper, "plain" for a few short ones.
    templates: Templates = "clip"
    # Source of the regions: "ground_truth", "localizer" or (sliding) "windows".
    regions: Literal["ground_truth", "localizer", "windows"] = "ground_truth"
    # Model directory of the localizer; "" uses the evaluated model's.
    localizer: str = ""
    # Proposals of the localizer.
    proposals: ProposalSettings = unstated(ProposalSettings)
    # Sides of the windows as fractions of the image's.
    window_sides: tuple[PartOfSide, ...] = ()
    # Scoring and suppression of the regions.
    detection: DetectionSettings = own_detection(chunk=25)

    def __post_init__(self):
        super().__post_init__()
        if self.detection.objectness not in (None, "none") and self.regions != "localizer":
            raise ConfigError(
                f"detection.objectness: {self.detection.objectness!r} with regions "
                f"{self.regions!r}, which have no objectness; set it to 'none', or regions to "
                "'localizer'"
            )
        if self.regions == "windows" and not self.window_sides:
            raise ConfigError("window_sides: (), expected shares of the image's side: (0.3, 0.5)")
