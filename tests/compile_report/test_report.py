import importlib.util
import os
from pathlib import Path

import jax
import pytest

from regionclip_jax import recipes
from regionclip_jax.assembly.training import Assumed
from regionclip_jax.compile_report.program_traffic import Collective, Launches
from regionclip_jax.compile_report.report import CompiledCost, compile_recipe
from regionclip_jax.jobs import pretrain
from regionclip_jax.jobs.registry import JOBS
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.settings import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def recipe(stem: str, variant: str):
    return recipes.load(f"{CONFIGS / stem}.py:{variant}")


def resolved(config):
    return recipes.resolve(JOBS[config.job].settings, config)


def test_a_report_states_the_memory_fit_the_traffic_and_the_collectives():
    cost = CompiledCost(
        topology="v5e:4x4",
        num_chips=16,
        several_hosts=False,
        batch_size=48,
        canvas=(800, 1088),
        dtype="float32",
        arguments=2 * 2**30,
        temporary=13 * 2**30,
        outputs=2**29,
        traffic={"trunk (forward)": 81_000_000_000, "step (backward)": 900_000_000},
        flops=16 * 197 * 10**12,
        collectives={"all-reduce": Collective(3, 2**20, 1.875 * 2**20)},
        launches=Launches(kernels=1234, waiting_loops=5),
        compile_seconds=61.0,
        num_steps=36_000,
    )
    text = cost.text()
    assert "15.50 GiB of 16 (fits)" in text and "16 chips, batch 48, canvas 800 x 1088" in text
    assert "computing 1000.0 ms, memory at least 100.0 ms" in text and "all-reduce" in text
    assert "81.0 GB  trunk (forward)" in text and "1 chips 100.0%" in text
    assert "launches" not in text
    # A step takes a second on each chip.
    assert "36,000 steps: 160 chip-hours at the chip's peak of FLOPs, 400 at 40%" in text
    assert "chip-hours" not in CompiledCost(**{**vars(cost), "num_steps": None}).text()
    large = CompiledCost(**{**vars(cost), "temporary": 20 * 2**30})
    assert "DOES NOT FIT" in large.text()
    gpu = CompiledCost(**{**vars(cost), "topology": "h100:2x8", "several_hosts": True})
    assert "1,234 kernels, 5 loops" in gpu.text() and "computing 398.4 ms" in gpu.text()
    half = CompiledCost(**{**vars(gpu), "dtype": "bfloat16"})
    assert "computing 199.2 ms" in half.text()


@pytest.mark.parametrize(
    ("topology", "variant", "message"),
    [
        ("v9:2x2", "rn50_coco", "expected one of .*'v5e'.*such as v5e:16x16"),
        ("v5e", "rn50_coco", "expected one of"),
        ("h100:0", "rn50_coco", "expected one of.*h100:4x8"),
        ("h100:2x2x2", "rn50_coco", "expected one of"),
        ("v5e:2x2", "scenes", "'scenes_experiment' is not one step"),
    ],
)
def test_invalid_topologies_and_recipes_are_refused(topology, variant, message):
    with pytest.raises(ConfigError, match=message):
        compile_recipe(
            resolved(recipe("pretrain", variant)),
            topology, localizer=None, preset="RN50", num_concepts=9,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "expected"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_the_dtype_auto_depends_on_the_target_devices(target, expected):
    """The dtype of the frozen kernels equals the compute dtype of the step."""
    config = recipe("pretrain", "rn50_coco")
    config.student.preset = config.teacher.preset = "scenes"
    with tracing_for(target):
        frozen = pretrain.build(resolved(config), Assumed("small")).abstract_frozen()
    for variables in (frozen.teacher, frozen.localizer):
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(variables) if leaf.ndim > 1}
        assert dtypes == {expected}


STEPS = [
    ("pretrain", "rn50_coco", {"student.preset": "scenes", "teacher.preset": "scenes"}, None),
    ("train_localizer", "small", {}, None),
    ("train_detector", "small", {}, "small"),
    ("evaluate", "coco_rpn", {"evaluation.batch_size": 4}, "small"),
]


def check_that_it_compiles(topology, stem, variant, changes, localizer):
    config = recipe(stem, variant)
    config.update_from_flattened_dict(changes)
    if "run" in config:
        config.run.batch_size = 12 if stem == "pretrain" else 4
    cost = compile_recipe(
        resolved(config), topology, localizer=localizer, preset="scenes", num_concepts=20
    )
    assert f"x {cost.canvas[1]}, bfloat16, compiled in" in cost.text()
    assert cost.num_chips == 4 and cost.flops > 0 and cost.temporary > 0
    assert cost.memory < cost.chip.memory and sum(cost.traffic.values()) > cost.arguments
    # Every training step sums its gradients over the chips.
    assert ("all-reduce" in cost.collectives) or stem == "evaluate"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("stem", "variant", "changes", "localizer"), STEPS)
def test_steps_compile_for_absent_tpus(stem, variant, changes, localizer):
    check_that_it_compiles("v5e:2x2", stem, variant, changes, localizer)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs JAX's CUDA plugin"
)
@pytest.mark.parametrize(("stem", "variant", "changes", "localizer"), STEPS)
def test_steps_compile_for_absent_gpus(stem, variant, changes, localizer):
    if jax.default_backend() != "gpu" and os.environ.get("JAX_PLATFORMS") != "cpu":
        pytest.skip("without a GPU the plugin compiles only with JAX_PLATFORMS=cpu, as the script")
    check_that_it_compiles("h100:4", stem, variant, changes, localizer)
