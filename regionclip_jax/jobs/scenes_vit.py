"""Synthetic experiment with a ViT: CLIP, RegionCLIP, CLIPSelf, and both, on given boxes.

For every seed it trains a small CLIP on whole images (job train_clip). From the CLIP it trains
RegionCLIP on captions and random boxes (job pretrain), and CLIPSelf on images alone (job distill).
The fourth model is RegionCLIP pretraining from CLIPSelf. The order matters: the teacher of
RegionCLIP labels regions by its dense map, which CLIPSelf improves. CLIPSelf as the second step
would replace the map that RegionCLIP trained by the embeddings of crops. No training uses a box.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from regionclip_jax.artifacts.results import write_results
from regionclip_jax.data.scenes.vocabulary import CONCEPTS, NOVEL_SHAPES
from regionclip_jax.jobs import distill, evaluate, pretrain, train_clip
from regionclip_jax.jobs.evaluate import Evaluation
from regionclip_jax.jobs.scenes_experiment import as_part, draw, spent_text, with_data
from regionclip_jax.reporting.runs import mean_metrics, runs_table
from regionclip_jax.reporting.stages import Stages
from regionclip_jax.reporting.tables import comparison_table
from regionclip_jax.settings import PretrainSettings, ScenesViTSettings, as_plain

CLIP, CROPS, REGIONCLIP, CLIPSELF, BOTH = (
    "CLIP", "CLIP on crops", "RegionCLIP", "CLIPSelf", "CLIPSelf, RegionCLIP"
)  # fmt: skip
_FOLDERS = {CLIP: "clip", REGIONCLIP: "regionclip", CLIPSELF: "clipself", BOTH: "both"}
# Seconds on two CPU cores, for the remaining time.
_DRAWING = {"drawing": 25.0}
_USUAL = {CLIP: 265.0, REGIONCLIP: 60.0, CLIPSELF: 110.0, BOTH: 60.0, "evaluation": 35.0}


def run(settings: ScenesViTSettings, workdir: Path) -> dict:
    """Run or resume the experiment, and return the mean metrics by model."""
    stages = Stages(
        _DRAWING | {f"seed {s}: {name}": t for s in settings.seeds for name, t in _USUAL.items()}
    )
    data = workdir / "data"
    stages.run("drawing", lambda: draw(settings.scenes, data, 0))
    evaluations = {}
    for seed in settings.seeds:
        evaluations[seed] = _run_seed(settings, seed, data, workdir / f"seed{seed}", stages)
        if jax.process_index() == 0:
            found = {name: each.metrics for name, each in evaluations[seed].items()}
            print(f"seed {seed}:\n{comparison_table(found)}", flush=True)
    runs = [{n: each.metrics for n, each in found.items()} for found in evaluations.values()]
    means = mean_metrics(runs, list(runs[0]))
    if jax.process_index() == 0:
        _write(settings, workdir, evaluations, runs, means, stages.seconds)
    return means


def _run_seed(
    settings: ScenesViTSettings, seed: int, data: Path, workdir: Path, stages: Stages
) -> dict[str, Evaluation]:
    """Train and evaluate the models of one seed."""
    folders = {name: workdir / folder for name, folder in _FOLDERS.items()}

    def stage(name, work):
        return stages.run(f"seed {seed}: {name}", work)

    whole = with_data(as_part(settings.train_clip, seed, settings), data / "whole_images")
    captions = with_data(as_part(settings.pretrain, seed, settings), data / "scenes")
    images = with_data(as_part(settings.distill, seed, settings), data / "scenes")

    clip = stage(CLIP, lambda: train_clip.run(whole, folders[CLIP]))
    models = {CLIP: clip}
    models[REGIONCLIP] = stage(
        REGIONCLIP, lambda: pretrain.run(_from(captions, clip), folders[REGIONCLIP], CONCEPTS)
    )
    start = dataclasses.replace(images.model, init_from=str(clip))
    images = dataclasses.replace(images, model=start)
    clipself = models[CLIPSELF] = stage(CLIPSELF, lambda: distill.run(images, folders[CLIPSELF]))
    models[BOTH] = stage(
        BOTH, lambda: pretrain.run(_from(captions, clipself), folders[BOTH], CONCEPTS)
    )
    return stage("evaluation", lambda: _evaluate(settings, data / "held_out", models))


def _from(settings: PretrainSettings, model: Path) -> PretrainSettings:
    """Return settings of pretraining whose student and teacher start from a model directory."""
    start = {"init_from": str(model)}
    return dataclasses.replace(
        settings,
        student=dataclasses.replace(settings.student, **start),
        teacher=dataclasses.replace(settings.teacher, **start),
    )


def _evaluate(
    settings: ScenesViTSettings, held_out: Path, models: Mapping[str, Path]
) -> dict[str, Evaluation]:
    """Return the evaluations of all models, and that of CLIP on crops of the boxes.

    CLIPSelf distils the crops of CLIP, so their recognition bounds what it can gain.
    """
    on_map = dataclasses.replace(settings.evaluation, path=str(held_out))
    on_crops = dataclasses.replace(
        on_map, detection=dataclasses.replace(on_map.detection, embed_from="crops")
    )
    evaluated = {CLIP: (CLIP, on_map), CROPS: (CLIP, on_crops)}
    evaluated |= {name: (name, on_map) for name in models if name != CLIP}
    return {
        name: evaluate.evaluate_model(
            models[model],
            section,
            settings.pretrain.student.dtype,
            vocabulary_path=models[model].parent / "class_vocabulary.npz",
            detections_path=models[model].parent
            / f"detections_{section.detection.embed_from}.json",
        )
        for name, (model, section) in evaluated.items()
    }


def _write(
    settings: ScenesViTSettings,
    workdir: Path,
    evaluations: Mapping[int, Mapping[str, Evaluation]],
    runs: list[dict],
    means: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
) -> None:
    details = {
        "what": "held-out drawn scenes, in percent: zero-shot recognition of ground-truth boxes, "
        "means over the seeds; weights trained here from random, so the numbers say nothing about "
        "real images",
        "novel_classes": list(NOVEL_SHAPES),
        "scenes_seed": settings.scenes.seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "runs": [
            {
                "seed": seed,
                "metrics": run,
                "per_category": {n: e.per_category for n, e in found.items()},
                "most_confused": {n: e.confused for n, e in found.items()},
                "counts": {n: e.coverage.as_json() for n, e in found.items()},
            }
            for run, (seed, found) in zip(runs, evaluations.items(), strict=True)
        ],
        "config": as_plain(settings),
    }
    write_results(workdir / "results.json", means, details=details)
    trained = [name for name in _FOLDERS if name != CLIP]
    print(f"recognition of given boxes by the models of seeds {settings.seeds}:")
    print(runs_table(runs, list(means), {}))
    print(f"\n{runs_table(runs, [], {f'{n} - {CLIP}': (CLIP, n) for n in trained})}")
    print(spent_text(_by_seed(seconds)))
    print(f"numbers: {workdir / 'results.json'}", flush=True)


def _by_seed(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the stages' seconds by the part of their names before the colon."""
    sums: dict[str, float] = {}
    for name, value in seconds.items():
        part = name.partition(":")[0]
        sums[part] = sums.get(part, 0.0) + value
    return sums
