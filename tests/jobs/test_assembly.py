import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.jobs import assembly
from regionclip_jax.losses.image_text import image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.settings import ConfigError, ModelSettings
from regionclip_jax.sharding.mesh import make_mesh


def test_a_choice_that_does_not_exist_is_refused_with_its_key_and_those_that_do():
    with pytest.raises(ConfigError, match=r"data\.source: 'webdataset' is none of \['a', 'b'\]"):
        assembly.choose({"b": 1, "a": 2}, "webdataset", "data.source")
    with pytest.raises(ConfigError, match=r"dtype: 'float16' is none of \['auto', 'bfloat16'"):
        assembly.compute_dtype("float16")
    with pytest.raises(ConfigError, match="preset: 'RN5' is none of .*'RN50'"):
        assembly.architecture(ModelSettings("RN5", "", "float32"))


@pytest.mark.parametrize(
    ("target", "expected"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_auto_is_bfloat16_where_programs_are_traced_for_accelerators(target, expected, caplog):
    with tracing_for(target), caplog.at_level("INFO", logger="absl"):
        assert assembly.resolve_dtype("auto") == expected
        assert assembly.compute_dtype("auto") == jnp.dtype(expected)
        for stated in ("float32", "bfloat16"):
            assert assembly.resolve_dtype(stated) == stated
        assembly.log_dtype("student", "auto")
    assert f"student: computing in {expected} (dtype=auto on {target})" in caplog.text


@pytest.mark.parametrize(
    "version, flags, dtype, target, expected",
    [
        ((0, 12, 0), "", "bfloat16", "cpu", True),
        ((0, 12, 0), "", "bfloat16", "gpu", False),
        ((0, 12, 0), "", "float32", "cpu", False),
        ((0, 12, 0), "--xla_cpu_experimental_ynn_fusion_type=", "bfloat16", "cpu", False),
        ((0, 11, 2), "", "bfloat16", "cpu", False),
    ],
)
def test_bfloat16_on_a_cpu_warns_where_xla_makes_nan_of_it(
    version, flags, dtype, target, expected, monkeypatch, caplog
):
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    with tracing_for(target), caplog.at_level("WARNING"):
        assembly.compute_dtype(dtype)
    assert ("set dtype to float32, or the environment variable" in caplog.text) == expected


def test_only_errors_of_values_become_mistakes_in_the_recipe():
    with pytest.raises(ConfigError, match="optimizer: too steep") as caught:
        with assembly.blame("optimizer"):
            raise ValueError("too steep")
    assert isinstance(caught.value.__cause__, ValueError)
    for error in (CheckpointMismatch("mine"), ConfigError("own"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as caught:
            with assembly.blame("optimizer"):
                raise error
        assert caught.value is error


def test_a_model_is_built_with_the_recipe_s_type_and_norm(model_section):
    section = dataclasses.replace(model_section("nano_resnet"), dtype="bfloat16", remat="products")
    model = assembly.build_model(section, frozen_norm=False)
    assert model.config.embed_dim == 20 and model.dtype == jnp.bfloat16 and not model.frozen_norm
    assert model.remat == "products"
    teacher = assembly.build_teacher(section)
    assert teacher == dataclasses.replace(model, frozen_norm=True, remat="all")


def test_a_fresh_model_is_drawn_from_the_seed(model_section, monkeypatch):
    architectures = []

    def fresh(config, key):
        architectures.append(config)
        return key

    # The initialisers themselves compile for many seconds.
    monkeypatch.setattr(assembly, "init_variables", fresh)
    for seed in (0, 7):
        found = assembly.initial_variables(model_section("nano_vit"), seed)
        assert found == jax.random.key(seed)
    assert set(architectures) == {PRESETS["nano_vit"]}


def test_a_model_starts_from_its_directory(model_section, model_directory, nano_weights):
    section = model_section("nano_vit", model_directory("nano_vit", 3))
    found = flatten(assembly.initial_variables(section, seed=0))
    expected = flatten(nano_weights("nano_vit", 3))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_a_directory_of_another_architecture_is_refused_naming_both(model_section, model_directory):
    directory = model_directory("nano_resnet")
    with pytest.raises(CheckpointMismatch) as caught:
        assembly.initial_variables(model_section("nano_vit", directory), seed=0)
    message = str(caught.value)
    assert f"{directory}: holds nano_resnet, the recipe wants preset 'nano_vit'" in message


def test_a_directory_that_is_no_model_is_refused(model_section, tmp_path):
    with pytest.raises(CheckpointMismatch, match="expected a model directory"):
        assembly.initial_variables(model_section("nano_vit", tmp_path), seed=0)


def test_a_batch_that_does_not_divide_among_the_devices_is_a_mistake_in_the_recipe():
    with pytest.raises(ConfigError, match=r"run\.batch_size: .*among 8 devices"):
        assembly.build_mesh(12, "run.batch_size")
    with pytest.raises(ConfigError, match=r"run\.fsdp: 3 does not divide the 8 devices"):
        assembly.build_mesh(8, "run.batch_size", fsdp=3)


def test_the_schedule_is_the_recipe_s(optimizer):
    multistep = dataclasses.replace(optimizer, warmup_steps=4, warmup_factor=0.5, boundaries=(10,))
    rate = assembly.build_schedule(multistep, num_steps=20)
    assert float(rate(0)) == pytest.approx(0.025)
    assert float(rate(5)) == pytest.approx(0.05) and float(rate(11)) == pytest.approx(0.005)
    cosine = dataclasses.replace(optimizer, schedule="cosine", warmup_steps=2)
    rate = assembly.build_schedule(cosine, num_steps=20)
    assert float(rate(2)) == pytest.approx(0.05) and float(rate(20)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "changes", [{"boundaries": (8, 4)}, {"schedule": "cosine", "warmup_steps": 9}]
)
def test_an_optimizer_that_makes_no_sense_is_a_mistake_in_the_recipe(optimizer, changes):
    with pytest.raises(ConfigError, match="optimizer: "):
        assembly.build_optimizer(dataclasses.replace(optimizer, **changes), num_steps=5)


def test_patterns_decide_what_is_trained_and_one_that_matches_nothing_is_refused(
    optimizer, nano_weights
):
    variables = nano_weights("nano_vit", 0)
    state = assembly.build_state(optimizer, variables, optax.sgd(0.1))
    assert set(state.params) == {"visual"} and set(state.frozen_params) == {"text", "logit_scale"}
    wrong = dataclasses.replace(optimizer, frozen_patterns=("^txt/",))
    with pytest.raises(ConfigError, match=r"optimizer: frozen pattern '\^txt/' matches none"):
        assembly.build_state(wrong, variables, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("chunk", "num_devices", "form"),
    [
        (None, 8, image_text_loss),
        (16, 1, chunked_image_text_loss),
        (16, 8, ring_image_text_loss),
    ],
)
def test_the_image_text_loss_is_plain_without_a_chunk_and_a_ring_on_several_devices(
    chunk, num_devices, form
):
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    loss = assembly.image_text_loss_on(mesh, chunk)
    if chunk is None:
        assert loss is form
    else:
        assert loss.func is form and loss.keywords["chunk"] == chunk


def test_frozen_models_are_kept_in_the_type_they_compute_in_with_the_same_result(nano_weights):
    """Kernels are cast where they are used, so casting them before changes no bit."""
    model = CLIP(PRESETS["nano_resnet"], dtype=jnp.bfloat16)
    variables = jax.tree.map(jnp.asarray, nano_weights("nano_resnet", 3))
    kept = assembly.for_looking(variables, jnp.bfloat16)
    assert "text" not in kept["params"] and kept["params"].keys() < variables["params"].keys()
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(kept) if leaf.ndim > 1}
    assert kinds == {"bfloat16"}
    side = model.config.preprocessing.resolution
    pixels = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    expected, found = (
        model.apply(some, pixels, method=model.encode_image) for some in (variables, kept)
    )
    np.testing.assert_array_equal(found, expected)
