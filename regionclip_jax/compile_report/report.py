"""Compile a recipe's step for absent TPUs or GPUs, and report its costs."""

import dataclasses
import time
from pathlib import Path

import jax

from regionclip_jax.assembly.models import resolve_dtype
from regionclip_jax.assembly.prediction import abstract_prediction
from regionclip_jax.assembly.training import Assumed, Training
from regionclip_jax.compile_report import program_costs
from regionclip_jax.compile_report.absent_devices import describe_topology
from regionclip_jax.compile_report.chips import CHIPS, Chip
from regionclip_jax.compile_report.program_text import parse_program
from regionclip_jax.compile_report.program_traffic import (
    Collective,
    Launches,
    collectives,
    launches,
    memory_traffic,
)
from regionclip_jax.jobs.registry import JOBS
from regionclip_jax.ops.backend import tracing_for
from regionclip_jax.reporting.stages import readable_seconds
from regionclip_jax.settings import (
    ConfigError,
    EvaluateSettings,
    JobSettings,
    TrainingSettings,
)
from regionclip_jax.sharding.global_arrays import (
    abstract_arrays,
    batch_sharding,
    replicated_sharding,
)
from regionclip_jax.sharding.mesh import make_mesh, require_divisible
from regionclip_jax.sharding.partition_rules import parameter_shardings

_ONE_STEP = TrainingSettings | EvaluateSettings
_GIB = 2**30
# Number of lines for the parts of a step with the most traffic.
_PARTS = 10


@dataclasses.dataclass(frozen=True)
class CompiledCost:
    """Costs of one compiled step; bytes are those of one chip."""

    topology: str
    num_chips: int
    several_hosts: bool
    batch_size: int
    canvas: tuple[int, int]
    # Dtype of the products: "float32" or "bfloat16".
    dtype: str
    arguments: int
    temporary: int
    outputs: int
    # Bytes by part of the step, largest first.
    traffic: dict[str, int]
    flops: int
    collectives: dict[str, Collective]
    launches: Launches
    compile_seconds: float
    # Steps of the recipe; None without training.
    num_steps: int | None

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.split(":")[0]]

    @property
    def memory(self) -> int:
        """Bytes a chip needs at once; the donated state counts as argument."""
        return self.arguments + self.temporary + self.outputs

    @property
    def roofline(self) -> program_costs.Roofline:
        return program_costs.roofline(
            self.flops / self.num_chips,
            sum(self.traffic.values()),
            sum(kind.sent_bytes for kind in self.collectives.values()),
            chip=self.chip,
            dtype=self.dtype,
            over_network=self.several_hosts,
        )

    def chip_hours(self, utilization: float = 1.0) -> float:
        """Return the chip-hours of the whole run at a share of the specified FLOPs.

        1 gives a lower bound; limits of memory and links are not included.
        """
        peak = self.chip.peak(self.dtype) * utilization
        return self.flops * (self.num_steps or 0) / peak / 3600

    def text(self) -> str:
        time_, chip = self.roofline, self.chip
        fits = "fits" if self.memory <= chip.memory else "DOES NOT FIT"
        lines = [
            f"{self.topology}, {self.num_chips} chips, batch {self.batch_size}, canvas "
            f"{self.canvas[0]} x {self.canvas[1]}, {self.dtype}, compiled in "
            f"{readable_seconds(self.compile_seconds)}",
            f"memory a chip: {self.memory / _GIB:.2f} GiB of {chip.memory / _GIB:.0f} ({fits}): "
            f"arguments {self.arguments / _GIB:.2f}, temporary {self.temporary / _GIB:.2f}, "
            f"results {self.outputs / _GIB:.2f}",
            f"FLOPs of a step: {self.flops / 1e12:.2f} T, a chip "
            f"{self.flops / self.num_chips / 1e12:.3f} T",
            f"read and written, a step, one chip: {sum(self.traffic.values()) / 1e9:.1f} GB, most "
            "of it by:",
            *(
                f"  {num_bytes / 1e9:6.1f} GB  {part}"
                for part, num_bytes in list(self.traffic.items())[:_PARTS]
            ),
            "between chips, a step, one chip:",
            *(
                f"  {kind:20s} {found.count:5d} times, {found.num_bytes / 2**20:10.2f} MiB, sent "
                f"{found.sent_bytes / 2**20:10.2f} MiB"
                for kind, found in self.collectives.items()
            ),
        ]
        if chip.kind == "gpu":
            lines.append(
                f"launches: {self.launches.kernels:,} kernels, {self.launches.waiting_loops} loops "
                "whose rounds wait for the host, with one round each"
            )
        lines += [
            f"roofline: computing {time_.compute * 1e3:.1f} ms, memory at least "
            f"{time_.memory * 1e3:.1f} ms, links {time_.links * 1e3:.2f} ms; step at least "
            f"{time_.step * 1e3:.1f} ms, with {time_.compute / time_.step:.0%} of the chip's FLOPs",
            "efficiency of weak scaling: "
            + ", ".join(
                f"{n} chips {share:.1%}"
                for n, share in program_costs.scaling(time_, self.num_chips).items()
            ),
        ]
        if self.num_steps:
            lines.append(
                f"the run's {self.num_steps:,} steps: {self.chip_hours():,.0f} chip-hours at the "
                f"chip's peak of FLOPs, {self.chip_hours(0.4):,.0f} at 40% of it"
            )
        return "\n".join(lines)


def compile_recipe(
    config: JobSettings,
    topology: str,
    *,
    localizer: str | None,
    preset: str,
    num_concepts: int,
    dump: str | None = None,
) -> CompiledCost:
    """Compile one step and return its costs.

    Args:
        config: settings of a job that trains or evaluates.
        topology: name for ``describe_topology``.
        localizer: name in models.presets; a detector needs one.
        num_concepts: concepts of the pool, or classes of a detector.
        preset: preset of the evaluated CLIP.
        dump: file for the program's text.

    Raises:
        ConfigError: a recipe of another job, a topology that does not exist, or sizes that do not
            divide among its devices.
    """
    if not isinstance(config, _ONE_STEP):
        one_step = [name for name, job in JOBS.items() if issubclass(job.settings, _ONE_STEP)]
        raise ConfigError(
            f"config.job: {config.job!r} is not one step; choose a recipe of {sorted(one_step)}"
        )
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    absent = describe_topology(topology)
    began = time.monotonic()
    with tracing_for(absent.chip.kind):
        if isinstance(config, EvaluateSettings):
            mesh = make_mesh(devices=absent.devices)
            function, arguments = _prediction(config, preset, localizer, num_concepts, mesh)
            dtype = resolve_dtype(config.dtype)
        else:
            mesh = make_mesh(fsdp=config.run.fsdp, devices=absent.devices)
            training = JOBS[config.job].build(config, Assumed(localizer, num_concepts))
            function, arguments = _training(training, mesh)
            dtype = training.dtype.name
        batch = arguments[-1]
        require_divisible(len(batch.mask), mesh)
        traced = function.trace(*arguments)
        compiled = traced.lower().compile(absent.compiler_options)
    text = compiled.as_text()
    if dump:
        Path(dump).write_text(text, encoding="utf-8")
    program = parse_program(text)
    memory = compiled.memory_analysis()
    return CompiledCost(
        topology=topology,
        num_chips=len(absent.devices),
        several_hosts=absent.several_hosts,
        batch_size=len(batch.mask),
        canvas=batch.images.shape[1:3],
        dtype=dtype,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        traffic=memory_traffic(program),
        flops=program_costs.count_flops(traced.jaxpr.jaxpr),
        collectives=collectives(program, len(absent.devices)),
        launches=launches(program),
        compile_seconds=time.monotonic() - began,
        num_steps=None if isinstance(config, EvaluateSettings) else config.run.num_steps,
    )


def _training(training: Training, mesh):
    shapes = training.abstract_state()
    state = abstract_arrays(shapes, parameter_shardings(shapes, mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    function = jax.jit(
        training.make_step(mesh),
        in_shardings=(shardings, None, None),
        out_shardings=(shardings, replicated_sharding(mesh)),
        donate_argnums=0,
    )
    frozen = training.abstract_frozen()
    frozen = abstract_arrays(frozen, parameter_shardings(frozen, mesh))
    return function, (state, frozen, _sharded(training.abstract_batch(), mesh))


def _prediction(config: EvaluateSettings, preset, localizer, num_classes: int, mesh):
    parts = abstract_prediction(
        config.evaluation, preset, config.dtype, localizer=localizer, num_classes=num_classes
    )
    whole = jax.tree.map(lambda _: replicated_sharding(mesh), parts.variables)
    function = jax.jit(parts.step, out_shardings=batch_sharding(mesh))
    return function, (abstract_arrays(parts.variables, whole), _sharded(parts.batch, mesh))


def _sharded(batch, mesh):
    return abstract_arrays(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))
