"""Settings of scores in model cards: stated keys are kept, the others have stated defaults."""

import dataclasses
import json
import math

import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.score_settings import complete_scores, default_scores
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.settings import (
    DetectionSettings,
    NmsSettings,
    ProposalSettings,
    ScoreSettings,
    unstated,
)

# No number is a default.
STATED = ScoreSettings(
    ProposalSettings(20, 50, 0.7),
    DetectionSettings(
        temperature=0.07,
        score_activation="sigmoid",
        score_bias=-3.5,
        embed_from="crops",
        objectness="none",
        score_threshold=0.02,
        nms=NmsSettings("gaussian", 0.4, 0.3, 0.01),
        max_detections=300,
        report_probabilities=True,
    ),
)
PARAMS = {"logit_scale": np.array(math.log(1 / 0.0772), np.float32)}


def read(scores: dict) -> ScoreSettings:
    content = json.loads(ModelCard(PRESETS["RN50"], {}).to_json()) | {"scores": scores}
    return ModelCard.from_json(json.dumps(content), "model/card.json").scores


def test_stated_scores_are_unchanged_by_json_and_win_over_the_weights():
    card = ModelCard(PRESETS["RN50"], {"run": "mine"}, scores=STATED)
    assert ModelCard.from_json(card.to_json()) == card
    assert complete_scores(card.scores, PARAMS, None) == STATED


def test_keys_of_memory_are_not_written():
    detection = dataclasses.replace(STATED.detection, regions_per_chunk=7)
    card = ModelCard(PRESETS["RN50"], {}, scores=dataclasses.replace(STATED, detection=detection))
    assert ModelCard.from_json(card.to_json()).scores == STATED


def test_a_card_without_scores_has_the_learned_temperature_and_probabilities():
    content = json.loads(ModelCard(PRESETS["RN50"], {}).to_json())
    del content["scores"]
    stated = ModelCard.from_json(json.dumps(content)).scores
    assert stated == ScoreSettings() == unstated(ScoreSettings)
    scores = complete_scores(stated, PARAMS, None)
    assert scores.detection.temperature == pytest.approx(0.0772, rel=1e-5)
    assert scores.detection.objectness == "sigmoid" and scores.detection.gives_probabilities
    expected = DetectionSettings(scores.detection.temperature, objectness="sigmoid")
    assert scores == ScoreSettings(ProposalSettings(1000, 1000, 0.9), expected)


def test_a_converted_model_with_a_bias_has_sigmoid_scores_with_it():
    params = PARAMS | {"logit_bias": np.array(-12.5, np.float32)}
    detection = default_scores(params, None).detection
    assert (detection.score_activation, detection.score_bias) == ("sigmoid", -12.5)
    assert detection.temperature == pytest.approx(0.0772, rel=1e-5)
    without = default_scores(PARAMS, None).detection
    assert (without.score_activation, without.score_bias) == ("softmax", 0.0)
    # A card of a version without the choice was read with a softmax.
    old = complete_scores(unstated(ScoreSettings), params, None).detection
    assert old.score_activation == "softmax" and old.temperature == detection.temperature


def test_the_candidates_of_a_localizer_depend_on_its_levels():
    pyramid, single = LOCALIZER_PRESETS["rn50_fpn"], LOCALIZER_PRESETS["rn50_c4"]
    assert default_scores(PARAMS, pyramid).proposals.pre_nms_topk == 1000
    assert default_scores(PARAMS, single).proposals.pre_nms_topk == 6000
    stated = read({"proposals": {"num_proposals": 20}})
    assert complete_scores(stated, PARAMS, single).proposals == ProposalSettings(20, 6000, 0.9)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], r"card\.json: scores: expected keys among \['proposals', 'detection'\], found \[\]"),
        ({"detection": {"temprature": 1}}, r"scores\.detection: .*found \['temprature'\]"),
        ({"detection": {"roi_align_impl": "auto"}}, r"found \['roi_align_impl'\]"),
        ({"detection": {"temperature": "0.07"}}, r"detection\.temperature: found '0\.07'"),
        ({"detection": {"temperature": 0}}, r"detection\.temperature: found 0, which is none of"),
        ({"detection": {"temperature": math.nan}}, r"card\.json: .*NaN is no number of JSON"),
        ({"detection": {"score_activation": "tanh"}}, r"score_activation: found 'tanh'"),
        ({"detection": {"score_bias": -1e9}}, r"detection\.score_bias: found -1000000000"),
        ({"detection": {"objectness": "root"}}, r"detection\.objectness: found 'root'"),
        ({"detection": {"nms": {"method": True}}}, r"detection\.nms\.method: found True"),
        ({"detection": {"report_probabilities": 1}}, r"report_probabilities: found 1"),
        ({"proposals": {"num_proposals": 0}}, r"proposals\.num_proposals: found 0"),
        ({"proposals": {"num_proposals": 1.5}}, r"proposals\.num_proposals: found 1\.5"),
    ],
)
def test_other_keys_and_values_are_refused_with_their_place(scores, message):
    with pytest.raises(CheckpointMismatch, match=rf"{message}.*again"):
        read(scores)
