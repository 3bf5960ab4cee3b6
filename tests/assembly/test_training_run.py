"""Run of a training job with a step that compiles quickly."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, load_model
from regionclip_jax.assembly import optimization, training_run
from regionclip_jax.assembly.training import Materials, Training
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.reporting.trackers import TrackerError
from regionclip_jax.settings import ConfigError, MixturePart, TrainClipSettings, as_plain
from regionclip_jax.sharding.global_arrays import replicate
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.steps.train_state import apply_gradients, create_train_state
from regionclip_jax.training.nan_guard import NonFiniteMetric

OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@pytest.fixture
def recipe(data, optimizer, run_section):
    run = dataclasses.replace(run_section, num_steps=4)
    return TrainClipSettings(data=data, optimizer=optimizer, run=run)


def step(state, frozen, batch):
    """Update the parameters with values of the batch, the frozen argument and the state."""
    total = batch["x"].sum() * frozen["scale"]
    gradients = jax.tree.map(lambda p: 1e-3 * (total + p), state.params)
    metrics = {"loss": total, "skipped_records": (batch["x"] < 0).sum()}
    return apply_gradients(state, gradients, OPTIMIZER), metrics


@pytest.fixture
def train(nano_weights, tmp_path):
    """``train(recipe)`` in one working directory; ``train.started`` lists the starts of streams."""
    started = []
    weights = nano_weights("nano_vit", 0)

    def stream(start, batch_size, broken_from):
        started.append(start)
        for position in range(start, 10**6, batch_size):
            x = position + np.arange(batch_size, dtype=np.float32)
            yield {"x": x * 1e-3 if position < broken_from else x * np.nan}

    def run(
        recipe, *, workdir=tmp_path, make_step=lambda mesh: step, broken_from=10**6, **contents
    ):
        def begin(variables):
            return create_train_state(variables, ("^text/",), OPTIMIZER)

        materials = Materials(
            contents={"records": 24, **contents},
            variables=lambda: weights,
            frozen=lambda workdir: {"scale": np.float32(0.5)},
            batches=lambda start: stream(start, recipe.run.batch_size, broken_from),
            export=training_run.as_clip(PRESETS["nano_vit"]),
        )
        training = Training(
            settings=recipe,
            dtype=jnp.dtype("float32"),
            make_step=make_step,
            initial_state=begin,
            abstract_variables=lambda: abstract_variables(PRESETS["nano_vit"]),
            abstract_frozen=dict,
            open=lambda: materials,
        )
        return training_run.run(training, workdir)

    run.started = started
    return run


def checkpoints(workdir) -> list[int]:
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def test_a_run_writes_checkpoints_events_and_a_trained_model(train, recipe, tmp_path, nano_weights):
    model = train(recipe)
    assert model == tmp_path / "model" and checkpoints(tmp_path) == [3, 4]
    assert list(tmp_path.glob("events.*"))
    # The comparison is in JSON, as its lists were tuples.
    written = json.loads((tmp_path / "settings.json").read_text())
    assert written == json.loads(json.dumps(as_plain(recipe)))
    variables, card = load_model(model)
    assert card.architecture == PRESETS["nano_vit"]
    assert card.source == {"run": "train_clip", "step": 4}
    start, end = flatten(nano_weights("nano_vit", 0)), flatten(variables)
    assert start.keys() == end.keys()
    for path in start:
        assert np.array_equal(start[path], end[path]) == path.startswith("params/text/"), path


def test_a_resumed_run_equals_one_without_a_stop(train, recipe, changed, tmp_path):
    longer = changed(recipe, {"run.num_steps": 6})
    whole = flatten(load_model(train(longer, workdir=tmp_path / "whole"))[0])
    train(recipe, workdir=tmp_path / "parts")
    parts = flatten(load_model(train(longer, workdir=tmp_path / "parts"))[0])
    assert train.started == [0, 0, 4 * 8]
    for path in whole:
        np.testing.assert_array_equal(whole[path], parts[path], err_msg=path)


@pytest.mark.slow
def test_a_run_of_a_tracker_goes_on_with_the_training_or_ends_with_its_error(
    train, recipe, changed, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    tracked = changed(recipe, {"tracker": "mlflow", "run.log_every": 1})
    workdir, ids = tmp_path / "run", []
    for num_steps in (2, 4):
        train(changed(tracked, {"run.num_steps": num_steps}), workdir=workdir)
        ids.append(json.loads((workdir / "tracker.json").read_text())["mlflow"])
    assert ids[0] == ids[1]
    run = MlflowClient().get_run(ids[0])
    assert run.info.status == "FINISHED" and run.data.params["run.num_steps"] == "2"
    history = MlflowClient().get_metric_history(ids[0], "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]

    failed = tmp_path / "failed"
    with pytest.raises(NonFiniteMetric):
        train(tracked, workdir=failed, broken_from=16)
    run_id = json.loads((failed / "tracker.json").read_text())["mlflow"]
    assert MlflowClient().get_run(run_id).info.status == "FAILED"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackerError, match="mlflow did not start"):
        train(tracked, workdir=tmp_path / "unreachable")
    assert checkpoints(tmp_path / "unreachable") == []


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(
    train, recipe, tmp_path, read_events
):
    """The result is the same bit for bit, no step is in TensorBoard twice, and both say it."""
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, checkpoints_to_keep=3))
    whole = flatten(load_model(train(recipe))[0])
    losses = read_events(tmp_path)["loss"]
    folder = tmp_path / "checkpoints"
    damaged = [folder / "4" / "position" / "metadata", folder / "3" / "state" / "manifest.ocdbt"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = flatten(load_model(train(recipe))[0])
    assert train.started == [0, 2 * 8]
    for path in whole:
        np.testing.assert_array_equal(whole[path], again[path], err_msg=path)
    events = read_events(tmp_path)
    assert events["loss"] == losses and [step for step, _ in losses] == [1, 2, 3, 4]
    ((step, (text,)),) = events["damaged_checkpoints/text_summary"]
    assert step == 2
    for number in (3, 4):
        assert f"{folder / str(number)} is damaged".encode() in text
        assert (folder / f"{number}.damaged").is_dir()
    assert checkpoints(tmp_path) == [2, 3, 4]


def test_a_finished_run_is_exported_again_without_a_step(train, recipe):
    before = flatten(load_model(train(recipe))[0])

    def no_step(mesh):
        raise AssertionError("a step was built")

    after = flatten(load_model(train(recipe, make_step=no_step))[0])
    assert train.started == [0]
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])


def test_fewer_steps_than_completed_are_refused_with_both_numbers(train, recipe, changed):
    train(recipe)
    with pytest.raises(ConfigError, match=r"run\.num_steps: 2, but .* has done 4; .*--workdir"):
        train(changed(recipe, {"run.num_steps": 2}))


@pytest.mark.parametrize(
    ("key", "there", "here"),
    [
        ("run.seed", 0, 1),
        ("run.batch_size", 8, 16),
        ("optimizer.learning_rate", 0.05, 0.1),
        ("optimizer.schedule", "multistep", "cosine"),
        ("data.context_length", 24, 32),
        ("data.flip_probability", 0.5, 0.0),
    ],
)
def test_a_setting_changed_at_resume_is_refused_with_both_values(
    train, recipe, changed, key, there, here
):
    train(changed(recipe, {"run.num_steps": 1}))
    with pytest.raises(CheckpointMismatch) as caught:
        train(changed(recipe, {key: here}))
    message = str(caught.value)
    assert f"{key}: there {there!r}, here {here!r}" in message and "--workdir" in message


def test_other_contents_at_the_same_paths_are_refused_with_both_values(train, recipe, changed):
    train(changed(recipe, {"run.num_steps": 1}), teacher="abc")
    with pytest.raises(CheckpointMismatch, match=r"contents\.teacher: there 'abc', here 'def'"):
        train(recipe, teacher="def")


def test_a_run_of_an_older_version_resumes_without_a_fingerprint_of_its_data(
    train, recipe, changed, caplog
):
    train(changed(recipe, {"run.num_steps": 1}))
    with caplog.at_level("INFO"):
        train(changed(recipe, {"run.num_steps": 2}), data="abc")
    assert "checkpoints/1: an older version wrote it without contents.data, taken" in caplog.text
    with pytest.raises(CheckpointMismatch, match=r"contents\.data: there 'abc', here 'def'"):
        train(recipe, data="def")


def test_paths_and_intervals_may_change_at_resume(train, recipe, changed, tmp_path):
    train(changed(recipe, {"run.num_steps": 1}))
    moved = {
        "data.path": "/elsewhere",
        "data.num_threads": 3,
        "data.max_skipped_fraction": 0.5,
        "run.log_every": 2,
        "run.checkpoint_every": 3,
        "run.checkpoints_to_keep": 5,
    }
    train(changed(recipe, moved))
    assert train.started == [0, 8] and checkpoints(tmp_path) == [1, 3, 4]


def test_paths_of_a_mixture_may_change_but_its_weights_may_not(recipe):
    def card(path: str, weight: float) -> dict:
        mixture = (MixturePart("array_record", path, "", weight),)
        data = dataclasses.replace(recipe.data, path="", mixture=mixture)
        return training_run.resume_card(dataclasses.replace(recipe, data=data), {})

    assert card("here", 1.0) == card("there", 1.0) != card("there", 2.0)


def test_the_number_of_steps_may_not_change_if_the_schedule_depends_on_it(recipe, changed):
    longer = {"run.num_steps": 9}
    for schedule, same in (("multistep", True), ("cosine", False)):
        first = changed(recipe, {"optimizer.schedule": schedule})
        second = changed(first, longer)
        cards = [training_run.resume_card(config, {}) for config in (first, second)]
        assert (cards[0] == cards[1]) == same


def test_a_metric_that_is_not_finite_stops_the_run_at_the_last_finite_checkpoint(
    train, recipe, tmp_path
):
    with pytest.raises(NonFiniteMetric, match="metric 'loss' is nan") as caught:
        train(recipe, broken_from=2 * 8)
    assert str(tmp_path / "checkpoints" / "2") in str(caught.value)
    assert checkpoints(tmp_path) == [1, 2] and not (tmp_path / "model").exists()


def test_a_parameter_that_is_not_finite_is_not_saved_even_with_a_finite_loss(
    train, recipe, tmp_path
):
    def make_step(mesh):
        def broken(state, frozen, batch):
            after, metrics = step(state, frozen, batch)
            poison = jnp.where(after.step == 3, jnp.nan, 0.0)
            params = {**after.params, "logit_scale": after.params["logit_scale"] + poison}
            return after.replace(params=params), metrics

        return broken

    with pytest.raises(NonFiniteMetric, match="tensor 'params/logit_scale', expected finite"):
        train(recipe, make_step=make_step)
    assert checkpoints(tmp_path) == [1, 2] and not (tmp_path / "model").exists()


def test_a_batch_size_that_the_devices_do_not_divide_is_refused(train, recipe, changed):
    with pytest.raises(ConfigError, match=r"run\.batch_size: .* 12 does not divide among 8"):
        train(changed(recipe, {"run.batch_size": 12}))


def test_one_run_takes_batches_on_several_canvases():
    mesh = training_run.build_mesh(8, "run.batch_size")

    def sum_up(state, frozen, batch):
        return state + batch["images"].sum(dtype=jnp.int32) * frozen, {}

    state, frozen = replicate((jnp.int32(0), jnp.int32(2)), mesh)
    run_step = training_run._on_mesh(sum_up, state.sharding, frozen, mesh)
    for height, width in ((2, 3), (3, 2), (2, 3)):
        state, _ = run_step(state, {"images": np.ones((8, height, width, 3), np.uint8)})
    assert int(state) == 3 * 2 * 8 * 18


def test_an_implicit_transfer_to_the_devices_in_the_loop_is_refused():
    mesh = training_run.build_mesh(8, "run.batch_size")
    state = replicate(jnp.zeros(3), mesh)
    add = training_run._on_mesh(
        lambda state, frozen, batch: (state + frozen, {}), state.sharding, np.ones(3), mesh
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        add(state, {"x": np.zeros(8, np.float32)})


@pytest.fixture
def on_devices(monkeypatch):
    """``on_devices(number)``: limit later runs to this number of devices."""

    def use(number: int) -> None:
        mesh = functools.partial(make_mesh, devices=jax.devices()[:number])
        monkeypatch.setattr(optimization, "make_mesh", mesh)

    return use


@pytest.mark.property
@pytest.mark.filterwarnings("error:Some donated buffers were not usable")
@pytest.mark.parametrize(
    ("first", "second"), [((8, 1), (4, 1)), ((4, 4), (1, 1)), ((1, 1), (8, 2))]
)
def test_a_run_resumes_on_other_devices_with_the_same_result(
    train, recipe, changed, on_devices, tmp_path, first, second
):
    """Compare a run on all devices with two steps on each of two meshes (devices, fsdp)."""
    whole = flatten(load_model(train(recipe, workdir=tmp_path / "whole"))[0])
    for steps, (number, fsdp) in ((2, first), (4, second)):
        on_devices(number)
        part = changed(recipe, {"run.num_steps": steps, "run.fsdp": fsdp})
        model = train(part, workdir=tmp_path / "parts")
    assert train.started == [0, 0, 2 * 8]
    resumed = flatten(load_model(model)[0])
    for path in whole:
        np.testing.assert_allclose(resumed[path], whole[path], rtol=1e-6, err_msg=path)


def test_device_counts_that_do_not_fit_the_run_are_refused(train, recipe, changed, on_devices):
    on_devices(6)
    with pytest.raises(ConfigError, match=r"run\.batch_size: .* 8 does not divide among 6"):
        train(recipe)
    with pytest.raises(ConfigError, match=r"run\.fsdp: 4 does not divide the 6 devices"):
        train(changed(recipe, {"run.fsdp": 4}))
