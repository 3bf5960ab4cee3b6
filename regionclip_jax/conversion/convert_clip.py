"""Conversion of CLIP and RegionCLIP checkpoints: read, rename, check, save.

Every tensor of the towers is used, or the file is refused; others are listed as unused. Every
parameter has its tensor, or the file is refused.
Numbers are copied (fp16 and bf16 cast up), never folded: batch-norm statistics stay verbatim with
eps 1e-5 (docs/reference/checkpoints.md#layouts, docs/reference/towers.md#frozen-norms).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionclip_jax.artifacts import model_checkpoint
from regionclip_jax.artifacts.detector_heads import HeadsCard, remove_heads, save_heads
from regionclip_jax.artifacts.model_card import (
    CheckpointMismatch,
    ModelCard,
    require_embeddings,
    require_heads,
)
from regionclip_jax.artifacts.score_settings import default_scores
from regionclip_jax.artifacts.tokenizer_file import choose_tokenizer
from regionclip_jax.conversion import (
    clip_keys,
    detector_keys,
    eva_keys,
    huggingface_keys,
    regionclip_keys,
    siglip_configuration,
    siglip_keys,
)
from regionclip_jax.conversion.architecture import infer_config, require_tokenizer
from regionclip_jax.conversion.archives import BARE_TENSOR, read_tensors
from regionclip_jax.conversion.choices import NO_CHOICE, Choice
from regionclip_jax.conversion.configuration_files import Completed, complete_config
from regionclip_jax.conversion.layouts import Origin, build_variables
from regionclip_jax.conversion.report import Conversion, is_bookkeeping, origin_of, report
from regionclip_jax.models.towers import CLIPConfig

# RegionCLIP drops the logit scale and divides by the temperature 0.01, the inverse of CLIP's limit.
DEFAULT_LOGIT_SCALE = np.array(np.log(100.0), np.float32)


class CheckpointFamily(NamedTuple):
    """Translation of the checkpoints of one tower family.

    Attributes:
        recognizes: tensors by the file's names -> True if they are of this family.
        rename: (tensors, "student" or "teacher") -> tensors by the names of ``origin``, and for
            each the file's own names. Names of the image tower begin with ``visual.``.
        infer_config: (renamed tensors, file name) -> architecture.
        origin: (path of a parameter, number of dimensions) -> its source tensor.
        configured: configuration files beside a checkpoint complete its config.
        complete: (config, checkpoint, tensors by the file's own names, choice) -> the config
            completed by files beside the checkpoint or by the choice; of a family that reads its
            own kind of files.
        normalize_map: regions are averages of cells at unit length, if nothing else is chosen.
    """

    recognizes: Callable[[dict[str, np.ndarray]], bool]
    rename: Callable[[dict[str, np.ndarray], str], tuple[dict, dict]]
    infer_config: Callable[[dict[str, np.ndarray], str], CLIPConfig]
    origin: Callable[[str, int], Origin]
    configured: bool = False
    complete: Callable[[CLIPConfig, Path, dict[str, np.ndarray], Choice], Completed] | None = None
    normalize_map: bool = False


def _to_openai(tensors: dict[str, np.ndarray], tower: str) -> tuple[dict, dict]:
    """Tensors of one CLIP by OpenAI's names, and the file's own names of each."""
    if huggingface_keys.is_huggingface(tensors):
        return huggingface_keys.to_openai(tensors)
    return regionclip_keys.to_openai(tensors, tower)


# The first family that recognizes a file converts it; CLIP's refuses with a message.
FAMILIES: list[CheckpointFamily] = [
    CheckpointFamily(
        siglip_keys.is_siglip,
        siglip_keys.rename,
        siglip_keys.infer_config,
        siglip_keys.origin,
        complete=siglip_configuration.complete,
    ),
    # CLIPSelf made the regions of EVA-02, from normalised maps.
    CheckpointFamily(
        eva_keys.is_original,
        eva_keys.rename,
        eva_keys.infer_original,
        eva_keys.origin,
        configured=True,
        normalize_map=True,
    ),
    CheckpointFamily(
        eva_keys.is_timm,
        eva_keys.rename,
        eva_keys.infer_config,
        eva_keys.origin,
        configured=True,
        normalize_map=True,
    ),
    CheckpointFamily(lambda tensors: True, _to_openai, infer_config, clip_keys.origin, True),
]


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    tower: str = "student",
    text_from: str | Path | None = None,
    choice: Choice = NO_CHOICE,
    tokenizer: str | Path | None = None,
    normalize_map: bool | None = None,
) -> Conversion:
    """Convert a CLIP or RegionCLIP checkpoint to the model directory ``output``.

    The box and mask heads of a fine-tuned RegionCLIP are converted with its student.

    Args:
        source: OpenAI archive or state dict, RegionCLIP ``.pth``, EVA-02-CLIP, or a file with
            open_clip's or Hugging Face's names and its configuration beside it
            (``configuration_files``).
        output: directory to write; an existing model is replaced.
        tower: ``"student"`` or ``"teacher"`` of a file with both.
        text_from: another checkpoint file (any of these kinds), the source of the text tower.
        choice: preset or activation of files that leave them open.
        tokenizer: vocabulary file of a SigLIP; None: the one beside the checkpoint.
        normalize_map: regions are averages of cells at unit length; None: as the family's paper.

    Raises:
        CheckpointMismatch: the file is not a checkpoint, lacks tensors, has tensors of other
            shapes or an unknown tokenizer, or its configuration or vocabulary is missing or
            another's; or a choice is missing, does not fit, or nothing is open; or
            ``normalize_map`` is chosen for a tower whose map has no embeddings.
    """
    source = Path(source)
    tensors = _read_model(source)
    _require_tower(source, tensors, tower)
    family = _family_of(tensors)
    renamed, names = family.rename(tensors, tower)
    if not any(map(_is_image, renamed)):
        raise CheckpointMismatch(
            f"{source}: expected a CLIP image tower (visual.*, backbone.* or vision_model.*), "
            f"found tensors such as {list(tensors)[:3]}; give a CLIP or RegionCLIP checkpoint"
        )
    notes, text_tensors = [], {}
    if text_from is not None:
        text_from = Path(text_from)
        text_tensors = _read_model(text_from)
        text = _take_text_tower(text_from, text_tensors, family)
        renamed = {name: value for name, value in renamed.items() if _is_image(name)} | text
        names |= {name: () for name in text}
        notes += [f"the text tower is that of {text_from.name}"]
    config = family.infer_config(renamed, source.name)
    both = text_from is None
    if family.complete is not None:
        completed = [family.complete(config, source, tensors, choice)]
    elif family.configured:
        completed = [complete_config(config, source, tensors, choice, image=True, text=both)]
        if text_from is not None:
            config = completed[0].config
            completed.append(
                complete_config(config, text_from, text_tensors, choice, image=False, text=True)
            )
    elif choice.flag is not None:
        config = choice.completed(config, source, image=True, text=both)
        completed = [Completed(config, chosen=True)]
    else:
        completed = [Completed(config)]
    if choice.flag is not None and not any(part.chosen for part in completed):
        raise CheckpointMismatch(
            f"{source}: expected no {choice.flag}, as the numbers are stated by a configuration "
            "beside it or are those of OpenAI's archives and of RegionCLIP; leave it out"
        )
    config, tokenizer_name = completed[-1].config, completed[-1].tokenizer
    notes += [note for part in completed for note in part.notes]
    require_heads(config, str(source), "give the configuration file of this checkpoint")
    if normalize_map is None:
        normalize_map = family.normalize_map
    elif normalize_map:
        require_embeddings(config.image, str(source), "leave out --normalize-map")
    config = dataclasses.replace(config, normalize_map=normalize_map)
    if normalize_map:
        notes.append("regions are averages of cells at unit length")
    ids = choose_tokenizer(config.text, text_from or source, tokenizer and Path(tokenizer))
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer=ids.name))
    require_tokenizer(config.text, text_from or source, tokenizer_name, ids)
    if "logit_scale" not in renamed:
        renamed["logit_scale"], names["logit_scale"] = DEFAULT_LOGIT_SCALE, ()
        notes.append("no logit_scale in the file: set to ln(100)")
    variables, used = build_variables(
        model_checkpoint.traced(model_checkpoint.abstract_variables, config, source.name),
        family.origin,
        renamed,
        where=f"{source.name} as {config}",
        remedy="check that the file is one whole CLIP; towers of different models (a teacher with "
        "the student's text) need --text-from",
    )
    _require_all_used(source, renamed.keys() - used)
    taken = {own_name for name in used for own_name in names[name]}
    origin = origin_of(source)
    scores = default_scores(variables["params"], None)
    # The localizer may be attached later, and its levels decide.
    scores = dataclasses.replace(
        scores, proposals=dataclasses.replace(scores.proposals, pre_nms_topk=None)
    )
    card = ModelCard(config, origin, scores=scores)
    heads = None
    if tower == "student" and detector_keys.has_box_head(tensors):
        heads, widths, used = detector_keys.take_heads(
            tensors, config.embed_dim, config.image.crop_channels, source.name
        )
        taken |= used
        heads_card = HeadsCard(widths, origin)
        notes.append(
            f"a detector: {heads_card.label} taken; its localizer is for --localizer {source.name}"
        )
    model_checkpoint.save_model(output, variables, card, ids)
    # Heads of an earlier model in this directory do not fit this one.
    remove_heads(output)
    if heads is not None:
        save_heads(output, {"params": heads, "batch_stats": {}}, heads_card)
    return report(card, tensors, taken, notes)


def _read_model(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a model's file, without a common prefix."""
    tensors = regionclip_keys.strip_common_prefix(read_tensors(path))
    if BARE_TENSOR in tensors:
        raise CheckpointMismatch(
            f"{path}: expected a model, found one bare tensor of shape "
            f"{tensors[BARE_TENSOR].shape}; class embeddings go to --vocabulary, with their --names"
        )
    return tensors


def _require_all_used(path: Path, unused: set[str]) -> None:
    """Refuse towers with further tensors, such as layer scales: they compute something else."""
    unused = {name for name in unused if not is_bookkeeping(name)}
    if unused:
        raise CheckpointMismatch(
            f"{path}: expected towers of CLIP's tensors alone, found {len(unused)} others such as "
            f"{sorted(unused)[:3]} (by OpenAI's or timm's names); no tower here uses them, so its "
            "embeddings would be wrong"
        )


def _is_image(openai_name: str) -> bool:
    return openai_name.startswith("visual.")


def _require_tower(path: Path, tensors: dict[str, np.ndarray], tower: str) -> None:
    if any(name.startswith("proposal_generator.") for name in tensors):
        raise CheckpointMismatch(
            f"{path}: expected a CLIP or RegionCLIP model, found a localizer "
            "(proposal_generator.*, with a backbone of its own); give it as --localizer, and the "
            "file of the recognition model as --source"
        )
    student, teacher = (regionclip_keys.has_tower(tensors, t) for t in ("student", "teacher"))
    if tower == "teacher" and not teacher:
        raise CheckpointMismatch(
            f"{path}: expected a teacher's tower ({regionclip_keys.TOWERS['teacher']}*), found "
            f"tensors such as {list(tensors)[:3]}; leave out --tower teacher"
        )
    if tower == "student" and teacher and not student and not any(map(_is_image, tensors)):
        raise CheckpointMismatch(
            f"{path}: expected a student's tower ({regionclip_keys.TOWERS['student']}*), found "
            "only the teacher's; convert it with --tower teacher"
        )


def _family_of(tensors: dict[str, np.ndarray]) -> CheckpointFamily:
    return next(family for family in FAMILIES if family.recognizes(tensors))


def _take_text_tower(
    path: Path, tensors: dict[str, np.ndarray], image_family: CheckpointFamily
) -> dict[str, np.ndarray]:
    family = _family_of(tensors)
    # One map of names is one family of models; files of it may have several schemes of names.
    if family.origin is not image_family.origin:
        raise CheckpointMismatch(
            f"{path}: expected the text tower of a model of the family that the image tower is of, "
            "found another family's; give --text-from the same kind of model"
        )
    renamed, _ = family.rename(tensors, "student")
    text = {name: value for name, value in renamed.items() if not _is_image(name)}
    if "token_embedding.weight" not in text:
        raise CheckpointMismatch(
            f"{path}: expected a text tower (token_embedding.weight, transformer.*), found "
            f"tensors such as {list(renamed)[:3]}; give --text-from a CLIP with both towers"
        )
    return text
