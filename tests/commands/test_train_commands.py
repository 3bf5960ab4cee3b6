"""Training, resuming and evaluating as commands."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from regionclip_jax.artifacts.model_checkpoint import flatten, load_card, load_model
from regionclip_jax.artifacts.results import read_detections, read_results

pytestmark = pytest.mark.command

# 26 steps of 4 records are 8 epochs of the 13 records with a caption.
NUM_STEPS = 26

SCENES = [
    "--config.scenes.side=64",
    "--config.scenes.num_closeups=32",
    "--config.scenes.num_scenes=32",
    "--config.scenes.num_test=16",
    "--config.train_clip.data.canvas_sizes=((64,64),)",
    "--config.train_clip.run.num_steps=4",
    "--config.train_clip.run.batch_size=8",
    "--config.train_clip.run.log_every=2",
    "--config.train_clip.optimizer.warmup_steps=2",
    "--config.num_labelled=32",
    "--config.train_localizer.data.canvas_sizes=((64,64),)",
    "--config.train_localizer.evaluation.canvas_sizes=((64,64),)",
    "--config.train_localizer.run.num_steps=2",
    "--config.train_localizer.run.batch_size=8",
    "--config.train_localizer.optimizer.warmup_steps=1",
    "--config.pretrain.data.canvas_sizes=((64,64),)",
    "--config.pretrain.run.num_steps=4",
    "--config.pretrain.run.batch_size=8",
    "--config.pretrain.run.log_every=2",
    "--config.pretrain.optimizer.warmup_steps=2",
    "--config.evaluation.canvas_sizes=((64,64),)",
    "--config.zero_shot.canvas_sizes=((64,64),)",
]


def parameters(model: Path) -> dict[str, np.ndarray]:
    return flatten(load_model(model)[0])


def checkpoints(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


@pytest.fixture(scope="module")
def scenes_workdir(run_main, tmp_path_factory) -> Path:
    """Working directory of the synthetic experiment, with four steps of each training."""
    workdir = tmp_path_factory.mktemp("scenes")
    done = run_main("configs/pretrain.py", workdir, *SCENES)
    assert done.returncode == 0, done.stderr
    assert "AP50 of detection, novel" in done.stdout and "results.json" in done.stdout
    return workdir


def test_the_synthetic_experiment_writes_metrics_a_gallery_and_events(scenes_workdir, read_events):
    results = read_results(scenes_workdir / "results.json")
    zero_shot = ("teacher zero-shot", "student zero-shot")
    assert set(results) == {"format", "details", "teacher", "student", *zero_shot}
    for model in ("teacher", "student", *zero_shot):
        for metric in ("AP50_novel", "AP50_base", "AP50_all"):
            assert 0 <= results[model][metric] <= 100
        # AP50 over all classes is a mean of novel and base, so it lies between them.
        low, high = sorted((results[model]["AP50_novel"], results[model]["AP50_base"]))
        assert low <= results[model]["AP50_all"] <= high
        file = f"detections_{model.replace(' ', '_')}.json"
        assert len(read_detections(scenes_workdir / file)) > 100
    assert 0 <= results["teacher"]["top1_novel"] <= 100
    for model in ("teacher", "student"):
        directory = scenes_workdir / model / "model"
        written = json.loads((directory / "self_check.json").read_text())["parameters_sha256"]
        assert written == load_card(directory).parameters_sha256
    assert (scenes_workdir / "student" / "model" / "vocabulary.npz").is_file()
    assert (scenes_workdir / "regions.png").read_bytes().startswith(b"\x89PNG")

    events = read_events(scenes_workdir)
    assert events["teacher/AP50_all"] == [
        (4, pytest.approx(results["teacher"]["AP50_all"], abs=1e-3))
    ]
    assert any(tag.startswith("regions") for tag in events)
    for run, losses in (("teacher", ["loss"]), ("student", ["loss", "loss_distillation"])):
        events = read_events(scenes_workdir / run)
        for loss in losses:
            assert [step for step, _ in events[loss]] == [2, 4]
            assert all(np.isfinite(value) for _, value in events[loss])
        assert any("config" in tag for tag in events), sorted(events)


def test_the_student_keeps_its_frozen_text_tower_and_trains_other_parameters(scenes_workdir):
    teacher = parameters(scenes_workdir / "teacher" / "model")
    student = parameters(scenes_workdir / "student" / "model")
    moved = {path for path in teacher if not np.array_equal(teacher[path], student[path])}
    assert moved and not any(path.startswith("params/text/") for path in moved)
    assert not any("norm" in path or path.startswith("batch_stats") for path in moved)
    assert "params/visual/attention_pool/c_proj/kernel" in moved


def test_a_finished_experiment_is_evaluated_again_without_training(
    run_main, scenes_workdir, read_events
):
    before = read_results(scenes_workdir / "results.json")
    done = run_main("configs/pretrain.py", scenes_workdir, *SCENES)
    assert done.returncode == 0, done.stderr
    assert "step 2/4" not in done.stderr and "resumes after step 4" in done.stderr
    after = read_results(scenes_workdir / "results.json")
    assert after["teacher"] == before["teacher"] and after["student"] == before["student"]
    assert [step for step, _ in read_events(scenes_workdir / "student")["loss"]] == [2, 4]


def test_another_seed_in_the_same_workdir_is_refused(run_main, error_message, scenes_workdir):
    message = error_message(
        run_main("configs/pretrain.py", scenes_workdir, *SCENES, "--config.seed=5")
    )
    assert "run.seed: there 0, here 5" in message and "--workdir" in message


@pytest.fixture(scope="module")
def whole_run(run_main, pretrain_recipe, tmp_path_factory) -> Path:
    """Working directory of an uninterrupted pretraining run."""
    workdir = tmp_path_factory.mktemp("whole")
    done = run_main(pretrain_recipe, workdir, f"--config.run.num_steps={NUM_STEPS}")
    assert done.returncode == 0, done.stderr
    assert "skipped a record" in done.stderr
    return workdir


def test_a_terminated_and_killed_run_equals_an_uninterrupted_one_after_resuming(
    command, run_main, pretrain_recipe, whole_run, tmp_path, read_events
):
    workdir, flags = tmp_path / "run", [f"--config.run.num_steps={NUM_STEPS}"]

    def interrupt(number: signal.Signals, when: Callable[[], bool], *more: str) -> tuple[int, str]:
        with (tmp_path / "stderr").open("w+") as log:
            process = subprocess.Popen(
                **command(pretrain_recipe, workdir, *flags, *more),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            try:
                deadline = time.monotonic() + 200
                while not when():
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.01)
                os.kill(process.pid, number)
                status = process.wait(timeout=100)
            finally:
                process.kill()
            log.seek(0)
            return status, log.read()

    def newest() -> int:
        return max(checkpoints(workdir), default=0)

    # The first signal arrives while the run loads and compiles.
    status, log = interrupt(signal.SIGTERM, workdir.exists, "--preempted_status=75")
    assert status == 75 and not checkpoints(workdir) and "Traceback" not in log
    assert "stopped by SIGTERM outside of training steps; start the same command again" in log

    status, log = interrupt(signal.SIGTERM, lambda: newest() > 0)
    terminated = newest()
    assert status == 0 and f"stopped by SIGTERM after step {terminated}, which is saved" in log
    assert 3 <= terminated < NUM_STEPS and not (workdir / "model").exists()

    status, _ = interrupt(signal.SIGKILL, lambda: newest() > terminated)
    killed = newest()
    assert status == -signal.SIGKILL
    assert terminated < killed < NUM_STEPS and not (workdir / "model").exists()
    done = run_main(pretrain_recipe, workdir, *flags)
    assert done.returncode == 0, done.stderr
    assert f"resumes after step {killed}" in done.stderr

    expected, resumed = parameters(whole_run / "model"), parameters(workdir / "model")
    assert expected.keys() == resumed.keys()
    for path in expected:
        np.testing.assert_array_equal(expected[path], resumed[path], err_msg=path)
    events, whole = read_events(workdir), read_events(whole_run)
    assert [step for step, _ in whole["loss"]] == list(range(1, NUM_STEPS + 1))
    for tag in ("loss", "learning_rate", "skipped_records"):
        assert events[tag] == whole[tag]
    # Images of a checkpoint are dropped while the last ones are drawn.
    drawn = [step for step, _ in events["pseudo_labels/0"]]
    assert drawn == sorted(set(drawn)) and set(drawn) <= {*range(3, NUM_STEPS, 3), NUM_STEPS}


def test_resuming_with_another_batch_size_is_refused_with_both_values(
    run_main, error_message, pretrain_recipe, whole_run
):
    done = run_main(
        pretrain_recipe, whole_run, "--config.run.batch_size=8", "--config.run.num_steps=30"
    )
    assert "run.batch_size: there 4, here 8" in error_message(done)


def test_a_run_resumes_with_more_steps_and_moved_data(
    run_main, error_message, pretrain_recipe, whole_run, coco_folder, tmp_path
):
    (tmp_path / "moved").symlink_to(coco_folder)
    flags = [f"--config.data.path={tmp_path / 'moved'}", "--config.data.num_threads=2"]
    more = f"--config.run.num_steps={NUM_STEPS + 1}"
    done = run_main(pretrain_recipe, whole_run, more, *flags)
    assert done.returncode == 0, done.stderr
    assert f"resumes after step {NUM_STEPS}" in done.stderr
    fewer = run_main(pretrain_recipe, whole_run, "--config.run.num_steps=3")
    message = error_message(fewer)
    assert "run.num_steps: 3" in message and f"has done {NUM_STEPS + 1}" in message


def test_a_huge_learning_rate_stops_the_run_and_keeps_the_last_finite_checkpoint(
    run_main, error_message, pretrain_recipe, tmp_path
):
    flags = ["--config.optimizer.boundaries=(2,)", "--config.optimizer.gamma=1e9"]
    flags += ["--config.run.checkpoint_every=2", "--config.run.num_steps=12"]
    done = run_main(pretrain_recipe, tmp_path, *flags)
    message = error_message(done)
    assert "metric 'gradient_norm'" in message or "metric 'loss" in message
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '2'}" in message
    assert checkpoints(tmp_path) == [2] and not (tmp_path / "model").exists()
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(tmp_path / "checkpoints" / "2" / "state")
    assert all(np.isfinite(leaf).all() for leaf in flatten(state).values())


def test_too_many_skipped_records_stop_the_run(run_main, error_message, pretrain_recipe, tmp_path):
    # The limit allows one blank caption of 14, but not one corrupt image of 13.
    flags = ["--config.data.max_skipped_fraction=0.074", "--config.data.min_skipped_records=1"]
    # With this seed the corrupt image is early in the order, where one is a larger fraction.
    done = run_main(pretrain_recipe, tmp_path, *flags, "--config.run.seed=5")
    message = error_message(done)
    assert "records were skipped, more than the limit of 7.40%" in message
    assert "broken.jpg" in message


def test_skipped_records_are_counted(whole_run, read_events):
    skipped = [v for step, v in read_events(whole_run)["skipped_records"] if step <= NUM_STEPS]
    # The corrupt image is skipped once an epoch; the source skips the blank caption at its start.
    assert len(skipped) == NUM_STEPS and sum(skipped) == 8


def test_a_pretrained_model_is_evaluated_on_instances(
    run_main, evaluate_recipe, whole_run, coco_folder, tmp_path
):
    flag = f"--config.models.student={whole_run / 'model'}"
    done = run_main(evaluate_recipe, tmp_path, flag)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "results.json")
    assert 0 <= results["student"]["AP50_all"] <= 100 and 0 <= results["student"]["top1_all"] <= 100
    assert set(results["details"]["per_category"]["student"]) == {"cat", "dog", "sheep"}

    truth = json.loads((coco_folder / "annotations" / "instances_val.json").read_text())
    wanted = {i["id"]: [] for i in truth["images"]}
    for annotation in truth["annotations"]:
        wanted[annotation["image_id"]].append(annotation["bbox"])
    predictions = read_detections(tmp_path / "detections_student.json")
    assert {d["category_id"] for d in predictions} == {3, 7, 12}
    for image, boxes in wanted.items():
        predicted = np.array([d["bbox"] for d in predictions if d["image_id"] == image])
        # Each box is predicted with every class, in pixels of the original image.
        assert len(predicted) == 3 * len(boxes)
        distance = np.abs(predicted[:, None] - np.array(boxes)[None]).max(-1)
        assert distance.min(1).max() < 0.02 and distance.min(0).max() < 0.02


def test_a_missing_model_is_named(run_main, error_message, evaluate_recipe, tmp_path):
    message = error_message(run_main(evaluate_recipe, tmp_path, "--config.models.student=nowhere"))
    assert "nowhere: expected a model directory" in message


def test_more_boxes_than_rows_are_refused_with_the_required_number(
    run_main, error_message, evaluate_recipe, model_directory, tmp_path
):
    flags = [f"--config.models.student={model_directory}", "--config.evaluation.max_boxes=1"]
    message = error_message(run_main(evaluate_recipe, tmp_path, *flags))
    assert "evaluation.max_boxes: " in message and "has 2 boxes" in message
    assert "set it to at least 2" in message
