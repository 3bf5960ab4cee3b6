import dataclasses

import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.jobs import train_clip
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import TrainClipSettings


@pytest.fixture(scope="module")
def config(data, optimizer, run_section, model_section, model_directory) -> TrainClipSettings:
    return TrainClipSettings(
        job="train_clip",
        matmul_precision="default",
        image_text_chunk=3,
        model=model_section("nano_vit", model_directory("nano_vit")),
        data=data,
        optimizer=dataclasses.replace(optimizer, frozen_patterns=()),
        run=run_section,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Working directory and model directory of a run of two steps."""
    workdir = tmp_path_factory.mktemp("train_clip")
    return workdir, train_clip.run(config, workdir)


def test_both_towers_and_the_temperature_are_trained(trained, nano_weights):
    workdir, model = trained
    assert model == workdir / "model"
    variables, card = load_model(model)
    assert card.architecture == PRESETS["nano_vit"]
    assert card.source == {"run": "train_clip", "step": 2}
    start, end = flatten(nano_weights("nano_vit", 0)), flatten(variables)
    moved = {path for path in start if not np.array_equal(start[path], end[path])}
    for path in ("logit_scale", "text/projection", "visual/projection", "text/token_embedding"):
        assert f"params/{path}" in moved
    assert all(np.isfinite(leaf).all() for leaf in end.values())
    learned = float(np.exp(-end["params/logit_scale"]))
    assert card.scores.detection.temperature == pytest.approx(learned, rel=1e-6)


@pytest.mark.slow
def test_a_sigmoid_gives_the_model_a_bias_and_sigmoid_scores(config, changed, tmp_path):
    sigmoid = changed(config, {"image_text_activation": "sigmoid"})
    variables, card = load_model(train_clip.run(sigmoid, tmp_path))
    assert card.architecture == dataclasses.replace(PRESETS["nano_vit"], logit_bias=True)
    assert abs(variables["params"]["logit_bias"] + 10) < 1
    detection = card.scores.detection
    assert detection.score_activation == "sigmoid"
    assert detection.score_bias == pytest.approx(float(variables["params"]["logit_bias"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run.seed", 4, "run.seed: there 0, here 4"),
        ("model.dtype", "bfloat16", "model.dtype: there 'float32', here 'bfloat16'"),
        ("data.path", 16, "contents.records: there 24, here 16"),
        ("data.path", 24, "contents.data: there '"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(
    trained, config, changed, scene_record, tmp_path, key, value, message
):
    if key == "data.path":
        records = [scene_record(100 + i, False) for i in range(value)]
        value = str(tmp_path / "other")
        write_array_record(records, value, 64, {})
    with pytest.raises(CheckpointMismatch) as caught:
        train_clip.run(changed(config, {key: value, "run.num_steps": 3}), trained[0])
    assert message in str(caught.value)


def test_the_seed_of_the_run_determines_the_weights_and_the_sampling_order(
    config, changed, monkeypatch
):
    seen = {}

    def weights(section, seed, *, logit_bias):
        assert not logit_bias
        seen["weights"] = seed

    def stream(section, source, *, tokenizer, batch_size, seed, start_record):
        assert tokenizer == ("clip", None)
        seen["order"] = (seed, batch_size, start_record)

    monkeypatch.setattr(train_clip, "initial_variables", weights)
    monkeypatch.setattr(train_clip, "stream_batches", stream)
    materials = train_clip.build(changed(config, {"run.seed": 41})).open()
    materials.variables()
    materials.batches(16)
    assert seen == {"weights": 41, "order": (41, 8, 16)}
