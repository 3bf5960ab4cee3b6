"""The synthetic experiment with a ViT: its jobs mocked, and once in full with a few steps."""

import dataclasses

import pytest

from answers import no_errors
from configs import pretrain as configs
from regionclip_jax import recipes
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.results import read_results
from regionclip_jax.data.scenes.vocabulary import CONCEPTS
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord
from regionclip_jax.jobs import scenes_vit as job
from regionclip_jax.jobs.evaluate import Evaluation
from regionclip_jax.reporting.runs import METRICS
from regionclip_jax.settings import ConfigError, ScenesViTSettings

MODELS = [job.CLIP, job.CROPS, job.REGIONCLIP, job.CLIPSELF, job.BOTH]
AP50 = {"clip": 10.0, "regionclip": 20.0, "clipself": 30.0, "both": 40.0}


def few(recipe):
    """Change a recipe to a few small images and two seeds."""
    recipe.seeds = (3, 5)
    recipe.scenes.update(side=48, num_closeups=6, num_scenes=8, num_test=4)
    return recipe


@pytest.fixture(scope="module")
def config() -> ScenesViTSettings:
    return recipes.resolve(ScenesViTSettings, few(configs.scenes_vit()))


@pytest.fixture
def mocked_jobs(monkeypatch, tmp_path):
    """``mocked_jobs(config)``: the mean metrics of the experiment and the calls of its jobs."""
    calls = []

    def training(name):
        def run(config, workdir, *more):
            calls.append((name, config, workdir, *more))
            return workdir / "model"

        return run

    def evaluate_model(directory, section, dtype, *, vocabulary_path, detections_path):
        calls.append(("evaluate", section, directory))
        value = AP50[directory.parent.name] + int(directory.parents[1].name.removeprefix("seed"))
        value += 50 * (section.detection.embed_from == "crops")
        metrics = dict.fromkeys(METRICS, value)
        return Evaluation(metrics, {}, [], no_errors(), [], {}, None, {})

    for module in (job.train_clip, job.pretrain, job.distill):
        monkeypatch.setattr(module, "run", training(module.__name__.rpartition(".")[2]))
    monkeypatch.setattr(job.evaluate, "evaluate_model", evaluate_model)

    def run(config):
        calls.clear()
        return job.run(config, tmp_path), list(calls)

    return run


def test_every_model_starts_from_the_intended_weights_and_images(mocked_jobs, config, tmp_path):
    _, calls = mocked_jobs(config)
    trainings = [call for call in calls if call[0] != "evaluate"]
    assert [call[0] for call in trainings] == ["train_clip", "pretrain", "distill", "pretrain"] * 2
    data = tmp_path / "data"
    for seed, (clip, regionclip, clipself, both) in ((3, trainings[:4]), (5, trainings[4:])):
        models = {name: str(tmp_path / f"seed{seed}" / name / "model") for name in AP50}
        assert [str(call[2] / "model") for call in (clip, regionclip, clipself, both)] == list(
            models.values()
        )
        assert clip[1].model.init_from == "" and clip[1].data.path == str(data / "whole_images")
        assert regionclip[1].student.init_from == regionclip[1].teacher.init_from == models["clip"]
        assert clipself[1].model.init_from == models["clip"]
        assert both[1].student.init_from == both[1].teacher.init_from == models["clipself"]
        assert {call[1].data.path for call in (regionclip, clipself, both)} == {
            str(data / "scenes")
        }
        assert {call[1].run.seed for call in (clip, regionclip, clipself, both)} == {seed}
        assert regionclip[3] == both[3] == CONCEPTS
        # Both pretrainings differ only in their start.
        assert dataclasses.replace(
            both[1], student=regionclip[1].student, teacher=regionclip[1].teacher
        ) == regionclip[1]  # fmt: skip


def test_boxes_are_only_evaluated(mocked_jobs, config, tmp_path):
    _, calls = mocked_jobs(config)
    data = tmp_path / "data"
    assert sorted(path.name for path in data.iterdir()) == ["held_out", "scenes", "whole_images"]
    for name in ("scenes", "whole_images"):
        source = ArrayRecordSource(data / name)
        assert {type(source[i]) for i in range(len(source))} == {ImageTextRecord}
    assert isinstance(ArrayRecordSource(data / "held_out")[0], DetectionRecord)
    measured = [call for call in calls if call[0] == "evaluate"]
    assert len(measured) == 2 * len(MODELS)
    assert {call[1].path for call in measured} == {str(data / "held_out")}
    assert {call[1].regions for call in measured} == {"ground_truth"}
    crops = [call for call in measured if call[1].detection.embed_from == "crops"]
    assert {call[2].parent.name for call in crops} == {"clip"} and len(crops) == 2


def test_means_runs_and_a_table_of_all_seeds_are_written(mocked_jobs, config, tmp_path, capsys):
    means, _ = mocked_jobs(config)
    assert {name: metrics["AP50_all"] for name, metrics in means.items()} == {
        job.CLIP: 14.0, job.CROPS: 64.0, job.REGIONCLIP: 24.0, job.CLIPSELF: 34.0, job.BOTH: 44.0,
    }  # fmt: skip
    results = read_results(tmp_path / "results.json")
    assert {name: results[name] for name in means} == means
    details = results["details"]
    assert [run["seed"] for run in details["runs"]] == [3, 5]
    assert [run["metrics"][job.CLIP]["top1_all"] for run in details["runs"]] == [13.0, 15.0]
    assert "seed 5: evaluation" in details["seconds"]
    assert details["config"]["seeds"] == [3, 5]
    printed = capsys.readouterr().out
    assert f"| 2 runs, mean ± standard deviation | {' | '.join(MODELS)} |" in printed
    assert "| top1_novel | 14.0 ± 1.4 | 64.0 ± 1.4 | 24.0 ± 1.4 | 34.0 ± 1.4 |" in printed
    assert "| AP50_all | +10.0 ± 0.0 | +20.0 ± 0.0 | +30.0 ± 0.0 |" in printed
    assert str(tmp_path / "results.json") in printed


@pytest.mark.parametrize("seeds", [(), (1, 2, 1)])
def test_no_seed_and_the_same_seed_twice_are_refused(seeds):
    with pytest.raises(ConfigError, match="one or more different seeds"):
        ScenesViTSettings(seeds=seeds)


@pytest.mark.slow
def test_a_few_steps_train_and_evaluate_all_models(tmp_path):
    recipe = few(configs.scenes_vit())
    recipe.seeds = (3,)
    for part in (recipe.train_clip, recipe.pretrain, recipe.distill):
        part.optimizer.warmup_steps = 0
        part.run.update(num_steps=2, batch_size=8, log_every=1, checkpoint_every=1)
    for part in (recipe.train_clip.model, recipe.pretrain.student, recipe.pretrain.teacher):
        part.preset = "nano_vit"
    recipe.distill.model.preset = "nano_vit"
    patterns = recipe.distill.optimizer.frozen_patterns
    recipe.distill.optimizer.frozen_patterns = tuple(
        p.replace("block2", "block0") for p in patterns
    )
    for part in (recipe.train_clip.data, recipe.pretrain.data, recipe.distill.data):
        part.update(canvas_sizes=((48, 48),), num_threads=1)
    recipe.train_clip.data.update(short_sides=None, max_long_side=None)
    recipe.evaluation.update(canvas_sizes=((48, 48),), batch_size=8)
    settings = recipes.resolve(ScenesViTSettings, recipe)
    means = job.run(settings, tmp_path)
    assert list(means) == MODELS
    assert all(0 <= value <= 100 for metrics in means.values() for value in metrics.values())
    for name in AP50:
        _, card = load_model(tmp_path / "seed3" / name / "model")
        assert card.architecture.normalize_map and card.source["step"] == 2
