"""Arguments of multi-process runs, from flags or from the environment.

On Slurm and on TPU slices that name their hosts the environment is enough. Elsewhere three flags
are needed, or ``auto``, which leaves the detection to JAX.
"""

from collections.abc import Mapping

AUTO = "auto"


def distributed_arguments(
    environment: Mapping[str, str],
    *,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> dict | None:
    """Return the arguments of ``jax.distributed.initialize``, or None for a single process.

    Args:
        environment: of the process.
        coordinator: ``host:port`` of process 0, with the other two; or ``auto``, without them.
        num_processes: of the run.
        process_id: of this process, from 0.

    Raises:
        ValueError: the flags do not fit together.
    """
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if coordinator == AUTO:
        if len(missing) != 2:
            raise ValueError(
                "--coordinator=auto finds the processes by itself; leave out --num_processes and "
                "--process_id"
            )
        return {}
    if not missing:
        _check(coordinator, num_processes, process_id)
        return {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            # All devices of the host, even if a cluster would give each process one.
            "cluster_detection_method": "deactivate",
        }
    if len(missing) < len(flags):
        given = sorted(flags.keys() - set(missing))
        raise ValueError(
            f"{', '.join(given)} without {', '.join(missing)}; give all three, or none on Slurm "
            "and on TPU slices"
        )
    slurm = _from_slurm(environment)
    return _from_tpu(environment) if slurm is None else slurm


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            "--coordinator: expected host:port with a port from 1 to 65535, or auto, found "
            f"{coordinator!r}"
        )
    if num_processes < 1:
        raise ValueError(f"--num_processes: expected 1 or more, found {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id: expected 0 to {num_processes - 1} of {num_processes} processes, found "
            f"{process_id}"
        )


def _from_slurm(environment: Mapping[str, str]) -> dict | None:
    """Arguments within ``srun``; a batch script or ``salloc`` shell has variables but no step.

    JAX gives each task one GPU, by its number on the node. A task alone on its node gets all of the
    step's GPUs there.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks < 2 or "SLURM_PROCID" not in environment:
        return None
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    one_a_node = environment.get("SLURM_STEP_NUM_NODES") == str(tasks)
    return {"local_device_ids": list(range(gpus))} if one_a_node and gpus else {}


def _from_tpu(environment: Mapping[str, str]) -> dict | None:
    return {} if "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None
