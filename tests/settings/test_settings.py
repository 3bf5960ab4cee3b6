"""Checks of settings, meanings of keys, and keys that a resumed run may change."""

import dataclasses
import math
import typing

import pytest

from regionclip_jax import settings
from regionclip_jax.settings import (
    ConfigError,
    DetectionSettings,
    DetectorObjective,
    DistillObjective,
    LocalizerObjective,
    MixturePart,
    NmsSettings,
    OptimizerSettings,
    PretrainObjective,
    PretrainSettings,
    ProposalSettings,
    RecallSettings,
    RunSettings,
    TrainDetectorSettings,
    TrainingSettings,
    completed,
    fixed_on_resume,
    may_change,
    meanings,
    unstated,
)
from regionclip_jax.settings.fields import Range

SECTIONS = [
    value
    for value in vars(settings).values()
    if dataclasses.is_dataclass(value) and isinstance(value, type)
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_has_a_meaning(section):
    texts = meanings(section)
    types = typing.get_type_hints(section)
    keys = [
        f.name for f in dataclasses.fields(section) if not dataclasses.is_dataclass(types[f.name])
    ]
    assert [key for key in keys if len(texts.get(key, "")) < 5] == []


def test_adjacent_keys_share_the_comment_above_them():
    texts = meanings(PretrainObjective)
    assert (
        texts["distillation_weight"] == texts["image_text_weight"] == "Weights of the three losses."
    )
    assert texts["box_grid"].startswith("Corners of random boxes")


def test_keys_that_may_change_on_resume_are_dropped_at_any_depth():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        kept: int = 1
        path: str = may_change("a")

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        parts: tuple = (Inner(2, "b"),)
        later: Inner = may_change(Inner())

    assert fixed_on_resume(Outer()) == {"inner": {"kept": 1}, "parts": [{"kept": 2}]}


def test_only_paths_intervals_and_memory_settings_may_change():
    fixed = fixed_on_resume(PretrainSettings())
    assert set(fixed["run"]) == {"batch_size", "seed"}
    assert set(fixed["concepts"]) == {"templates"}
    assert set(fixed["student"]) == {"preset", "normalize_map", "dtype"}
    free = {"localizer", "regions_per_chunk", "regions_per_softmax", "micro_batches"}
    free |= {"image_text_chunk", "roi_align_impl"}
    keys = {field.name for field in dataclasses.fields(PretrainObjective)}
    assert set(fixed["regions"]) == keys - free
    assert "path" not in fixed["data"] and "num_threads" not in fixed["data"]
    assert "matmul_precision" not in fixed


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            PretrainObjective,
            {"num_regions": 301},
            r"num_regions: 301 .*proposals\.num_proposals 300",
        ),
        (
            PretrainObjective,
            {"box_sides": (0.6, 0.2)},
            r"box_sides: expected the smaller number first, found \(0\.6, 0\.2\)",
        ),
        (PretrainObjective, {"box_sides": (0.0, 0.2)}, r"box_sides: .* above 0"),
        (PretrainObjective, {"box_sides": (0.5, 1.2)}, r"box_sides: .* at most 1"),
        (
            PretrainObjective,
            {"padding": "zero"},
            r"padding: 'zero' is none of \['invisible', 'reference'\]",
        ),
        (PretrainObjective, {"roi_align_impl": "fast"}, r"roi_align_impl: 'fast' is none of"),
        (
            PretrainObjective,
            {"proposals": ProposalSettings(None)},
            r"proposals\.num_proposals: None, expected a number",
        ),
        (
            DetectorObjective,
            {"proposals": ProposalSettings(nms_threshold=None)},
            r"proposals\.nms_threshold: None",
        ),
        (
            DistillObjective,
            {"boxes": "proposals", "boxes_per_image": 301},
            r"boxes_per_image: 301 .*proposals\.num_proposals 300",
        ),
        (DistillObjective, {"localizer": "rpn"}, "localizer: 'rpn' with boxes 'patches'"),
        (DistillObjective, {"box_sides": (9, 8)}, r"box_sides: .* found \(9, 8\)"),
        (RecallSettings, {"proposals": ProposalSettings(pre_nms_topk=None)}, "pre_nms_topk: None"),
        (DetectionSettings, {"temperature": 0.0}, "temperature: .* from 1e-06 to .* found 0.0"),
        (LocalizerObjective, {"negative_below": 0.8}, "negative_below: 0.8 with positive_from 0.7"),
        (
            DetectorObjective,
            {"image_tower": "random"},
            "regions_per_chunk: 64 with a random image tower",
        ),
        (OptimizerSettings, {"warmup_steps": -1}, "warmup_steps: .* of at least 0, found -1"),
        (OptimizerSettings, {"boundaries": (5, 3)}, r"boundaries: .* found \(5, 3\); sort them"),
    ],
)
def test_invalid_numbers_are_refused_with_their_keys(section, changes, message):
    with pytest.raises(ConfigError, match=message):
        section(**changes)


@pytest.mark.parametrize("key", ["images_per_group", "micro_batches"])
def test_parts_of_a_batch_divide_it(key):
    regions = PretrainObjective(**{"images_per_group": None, key: 3})
    with pytest.raises(ConfigError, match=rf"regions\.{key}: 3 .*run\.batch_size 8"):
        PretrainSettings(regions=regions, run=RunSettings(batch_size=8))


@pytest.mark.parametrize("section", typing.get_args(TrainingSettings))
def test_a_cosine_needs_a_run_longer_than_its_warm_up(section):
    # Found when the settings are made: in the synthetic experiment a later training starts after
    # minutes.
    cosine = OptimizerSettings(schedule="cosine", warmup_steps=100)
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps: 100 .* run of 96"):
        section(optimizer=cosine, run=RunSettings(num_steps=96))
    assert section(optimizer=cosine, run=RunSettings(num_steps=192)).run.num_steps == 192


def test_one_group_may_be_the_whole_batch():
    regions = PretrainObjective(images_per_group=None)
    assert PretrainSettings(regions=regions, run=RunSettings(batch_size=7)).run.batch_size == 7


def test_steps_take_settings_as_static_arguments():
    assert hash(PretrainObjective()) == hash(PretrainObjective())
    assert PretrainObjective() != PretrainObjective(proposals=ProposalSettings(num_proposals=400))


def test_keys_that_are_left_open_have_the_models_own_values_at_any_depth():
    own = DetectionSettings(0.07, "crops", "none", 0.02, NmsSettings("gaussian", 0.4), 300)
    open_ = unstated(DetectionSettings)
    assert completed(open_, own) == own
    stated = dataclasses.replace(
        open_, temperature=0.05, nms=NmsSettings(None, 0.6, None, None), regions_per_chunk=9
    )
    result = completed(stated, own)
    assert (result.temperature, result.objectness, result.max_detections) == (0.05, "none", 300)
    assert result.nms == NmsSettings("gaussian", 0.6)
    # Keys of memory are not the model's.
    assert result.regions_per_chunk == 9
    assert completed(stated, dataclasses.replace(own, regions_per_chunk=3)).regions_per_chunk == 9


def test_a_detector_states_the_scores_of_its_evaluation_and_else_of_its_training():
    training = DetectorObjective(temperature=0.07, proposals=ProposalSettings(20, 50, 0.6))
    scores = TrainDetectorSettings(detector=training).scores
    assert scores.proposals == training.proposals
    assert scores.detection.temperature == 0.07 and scores.detection.objectness == "none"
    evaluation = TrainDetectorSettings().evaluation
    evaluation = dataclasses.replace(
        evaluation,
        proposals=ProposalSettings(30, None, None),
        detection=dataclasses.replace(evaluation.detection, temperature=0.02),
    )
    scores = TrainDetectorSettings(detector=training, evaluation=evaluation).scores
    assert scores.proposals == ProposalSettings(30, 50, 0.6)
    assert scores.detection.temperature == 0.02


def test_an_open_key_may_be_another_choice_but_no_other_value():
    assert DetectionSettings(objectness=None).objectness is None
    with pytest.raises(ConfigError, match=r"objectness: 'root' is none of \['none', 'reference',"):
        DetectionSettings(objectness="root")


def numbers_in(kind) -> list:
    """Return the types of the numbers in a field's type."""
    if typing.get_origin(kind) is typing.Annotated or kind in (int, float):
        return [kind]
    return [number for part in typing.get_args(kind) for number in numbers_in(part)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_number_has_a_range_and_others_are_refused(section):
    for name, kind in typing.get_type_hints(section, include_extras=True).items():
        numbers = numbers_in(kind)
        if not numbers:
            continue
        assert typing.get_origin(numbers[0]) is typing.Annotated, f"{name} has no range"
        plain = typing.get_args(numbers[0])[0]
        bad = [-(10.0**9), math.inf, -math.inf, math.nan] if plain is float else [-1, 10**12]
        for value in bad:
            parts = [kind, *typing.get_args(kind)]
            given = value
            if tuple in map(typing.get_origin, parts):
                given = (value,) * len(numbers)
            if name == "canvas_sizes":
                given = ((value, value),)
            more = {"source": "tfds", "path": ""} if section is MixturePart else {}
            with pytest.raises(ConfigError, match=f"^{name}: expected a (whole )?number"):
                section(**{name: given, **more})


def test_ranges_are_named_in_words():
    assert str(Range(1, noun="a whole number")) == "a whole number of at least 1"
    assert str(Range(0, above=True)) == "a number above 0"
    assert str(Range(0, 1, above=True)) == "a number above 0 and at most 1"
    assert str(Range(0, 1)) == "a number from 0 to 1"
    assert 0 not in Range(0, above=True) and "1" not in Range(0) and 0 in Range(0)
