import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import flatten, load_card, save_model
from regionclip_jax.assembly import models
from regionclip_jax.assembly.models import (
    build_model,
    build_teacher,
    clip_config,
    compute_dtype,
    initial_variables,
    log_dtype,
    resolve_dtype,
    with_own_scores,
    without_text_tower,
)
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.settings import (
    ConfigError,
    DetectionSettings,
    EvaluationSettings,
    ModelSettings,
    ProposalSettings,
    ScoreSettings,
    choose,
    config_context,
)


def test_an_unknown_choice_is_refused_with_its_key_and_the_known_choices():
    with pytest.raises(ConfigError, match=r"data\.source: 'webdataset' is none of \['a', 'b'\]"):
        choose({"b": 1, "a": 2}, "webdataset", "data.source")
    with pytest.raises(ConfigError, match=r"dtype: 'float16' is none of \['auto', 'bfloat16'"):
        compute_dtype("float16")
    with pytest.raises(ConfigError, match="preset: 'RN5' is none of .*'RN50'"):
        clip_config(ModelSettings("RN5", "", "float32"))


@pytest.mark.parametrize(
    ("target", "expected"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_auto_is_bfloat16_if_programs_are_traced_for_accelerators(target, expected, caplog):
    with tracing_for(target), caplog.at_level("INFO", logger="absl"):
        assert resolve_dtype("auto") == expected
        assert compute_dtype("auto") == jnp.dtype(expected)
        for stated in ("float32", "bfloat16"):
            assert resolve_dtype(stated) == stated
        log_dtype("student", "auto")
    assert f"student: computing in {expected} (dtype=auto on {target})" in caplog.text


def test_only_value_errors_become_config_errors():
    with pytest.raises(ConfigError, match="optimizer: too steep") as caught:
        with config_context("optimizer"):
            raise ValueError("too steep")
    assert isinstance(caught.value.__cause__, ValueError)
    for error in (CheckpointMismatch("mine"), ConfigError("own"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as caught:
            with config_context("optimizer"):
                raise error
        assert caught.value is error


def test_a_model_has_the_dtype_norm_and_remat_policy_of_the_recipe(model_section):
    section = dataclasses.replace(model_section("nano_resnet"), dtype="bfloat16", remat="products")
    model = build_model(section, frozen_norm=False)
    assert model.config.embed_dim == 20 and model.dtype == jnp.bfloat16 and not model.frozen_norm
    assert model.remat == "products"
    teacher = build_teacher(section)
    assert teacher == dataclasses.replace(model, frozen_norm=True, remat="all")


def test_a_fresh_model_is_drawn_from_the_seed(model_section, monkeypatch):
    architectures = []

    def fresh(config, key):
        architectures.append(config)
        return key

    # Compiling the initialisers takes many seconds.
    monkeypatch.setattr(models, "init_variables", fresh)
    for seed in (0, 7):
        assert initial_variables(model_section("nano_vit"), seed) == jax.random.key(seed)
    assert set(architectures) == {PRESETS["nano_vit"]}


def test_a_model_starts_from_its_directory(model_section, model_directory, nano_weights):
    section = model_section("nano_vit", model_directory("nano_vit", 3))
    variables = flatten(initial_variables(section, seed=0))
    expected = flatten(nano_weights("nano_vit", 3))
    assert variables.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(variables[path], expected[path])


def test_rules_for_other_sizes_are_those_of_the_preset(model_section, model_directory, tmp_path):
    """A file of Hugging Face's has another rule for positions, but the same weights."""
    directory = shutil.copytree(model_directory("nano_vit"), tmp_path / "model")
    (directory / "digests.json").unlink()  # the card is edited by hand
    card = directory / "card.json"
    text = card.read_text().replace("bicubic_antialiased", "bicubic")
    card.write_text(text.replace("bilinear_round", "bicubic_truncate"))
    found = load_card(directory).architecture
    assert found != PRESETS["nano_vit"] and found.image.position_resize == "bicubic"
    assert initial_variables(model_section("nano_vit", directory), seed=0)
    card.write_text(text.replace("quick_gelu", "gelu"))
    with pytest.raises(CheckpointMismatch, match="the recipe wants preset 'nano_vit'"):
        initial_variables(model_section("nano_vit", directory), seed=0)


def test_a_bias_is_added_for_a_sigmoid_and_left_out_without_one(
    model_section, model_directory, tmp_path, caplog
):
    """A preset without a bias has one if its training is a sigmoid: SigLIP's start, or a file's."""
    section = model_section("nano_vit", model_directory("nano_vit"))
    variables = initial_variables(section, seed=0, logit_bias=True)
    assert variables["params"]["logit_scale"] == np.float32(np.log(10))
    assert variables["params"]["logit_bias"] == -10
    config = build_model(section, frozen_norm=True, logit_bias=True).config
    assert config == dataclasses.replace(PRESETS["nano_vit"], logit_bias=True)

    learned = variables | {"params": variables["params"] | {"logit_bias": np.float32(-7)}}
    save_model(tmp_path, learned, ModelCard(config, {"run": "test"}))
    section = model_section("nano_vit", tmp_path)
    again = initial_variables(section, seed=0, logit_bias=True)
    assert again["params"]["logit_bias"] == -7
    assert "logit_bias" not in initial_variables(section, seed=0)["params"]
    assert "has a logit bias, which this training does not use" in caplog.text


def test_a_directory_of_another_architecture_is_refused_naming_both(model_section, model_directory):
    directory = model_directory("nano_resnet")
    with pytest.raises(CheckpointMismatch) as caught:
        initial_variables(model_section("nano_vit", directory), seed=0)
    message = str(caught.value)
    assert f"{directory}: holds nano_resnet, the recipe wants preset 'nano_vit'" in message


def test_a_directory_without_a_model_is_refused(model_section, tmp_path):
    with pytest.raises(CheckpointMismatch, match="expected a model directory"):
        initial_variables(model_section("nano_vit", tmp_path), seed=0)


def test_frozen_models_stored_in_the_compute_dtype_give_the_same_result(nano_weights):
    """Modules cast kernels to the compute dtype, so an earlier cast changes no bit."""
    model = CLIP(PRESETS["nano_resnet"], dtype=jnp.bfloat16)
    variables = jax.tree.map(jnp.asarray, nano_weights("nano_resnet", 3))
    stored = without_text_tower(variables, jnp.bfloat16)
    assert "text" not in stored["params"] and stored["params"].keys() < variables["params"].keys()
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(stored) if leaf.ndim > 1}
    assert dtypes == {"bfloat16"}
    side = model.config.preprocessing.resolution
    pixels = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    expected, actual = (
        model.apply(some, pixels, method=model.encode_image) for some in (variables, stored)
    )
    np.testing.assert_array_equal(actual, expected)


def test_an_evaluation_uses_the_models_own_scores_where_it_states_none():
    own = ScoreSettings(
        ProposalSettings(20, 50, 0.7), DetectionSettings(0.07, objectness="sigmoid")
    )
    evaluation = EvaluationSettings(regions="localizer")
    resolved = with_own_scores(evaluation, own)
    assert resolved.proposals == own.proposals
    assert resolved.detection == dataclasses.replace(own.detection, regions_per_chunk=25)
    stated = dataclasses.replace(evaluation.detection, objectness="reference")
    resolved = with_own_scores(dataclasses.replace(evaluation, detection=stated), own)
    assert (resolved.detection.objectness, resolved.detection.temperature) == ("reference", 0.07)
    # Given boxes have no objectness.
    assert with_own_scores(EvaluationSettings(), own).detection.objectness == "none"


def test_a_model_with_sigmoids_has_its_own_temperature_unless_the_activation_is_stated():
    sigmoid = DetectionSettings(0.007, score_activation="sigmoid", score_bias=-16.0)
    own = ScoreSettings(ProposalSettings(), sigmoid)

    def scored(**stated):
        stated = DetectionSettings(**{"temperature": 0.01, "objectness": "none"} | stated)
        found = with_own_scores(EvaluationSettings(detection=stated), own).detection
        return found.temperature, found.score_activation, found.score_bias

    assert scored(score_activation=None, score_bias=None) == (0.007, "sigmoid", -16.0)
    assert scored(score_activation="sigmoid", score_bias=None) == (0.01, "sigmoid", -16.0)
    assert scored() == (0.01, "softmax", 0.0)
    softmax = dataclasses.replace(sigmoid, score_activation="softmax", score_bias=0.0)
    own = ScoreSettings(ProposalSettings(), softmax)
    assert scored(score_activation=None, score_bias=None) == (0.01, "softmax", 0.0)
