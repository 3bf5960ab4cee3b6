import pytest

from regionclip_jax.sharding.processes import distributed_arguments

NO_FLAGS = {"coordinator": None, "num_processes": None, "process_id": None}
# Environment variables of the second of two tasks of srun.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
}


def arguments(environment: dict, **flags) -> dict | None:
    return distributed_arguments(environment, **(NO_FLAGS | flags))


def test_a_process_in_a_plain_shell_is_a_single_process():
    assert arguments({"LANG": "C"}) is None


def test_the_only_task_of_a_node_gets_all_its_gpus():
    assert arguments(SLURM) == {"local_device_ids": [0, 1, 2, 3]}


def test_jax_selects_the_devices_of_tasks_that_share_a_node_or_have_no_gpu():
    assert arguments(SLURM | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}) == {}
    without = {name: value for name, value in SLURM.items() if name != "SLURM_GPUS_ON_NODE"}
    assert arguments(without) == {}


def test_a_batch_script_or_an_allocation_without_srun_is_a_single_process():
    batch = {name: value for name, value in SLURM.items() if "_STEP_" not in name}
    assert arguments(batch) is None
    # An interactive step and srun --ntasks=1 in a larger allocation have one task.
    assert arguments(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}) is None


def test_a_tpu_slice_has_several_processes_only_on_several_hosts():
    assert arguments({"TPU_WORKER_HOSTNAMES": "10.0.0.2,10.0.0.3"}) == {}
    assert arguments({"TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_flags_replace_the_environment_and_give_the_process_all_devices():
    given = arguments(SLURM, coordinator="10.0.0.2:1234", num_processes=3, process_id=0)
    assert given == {
        "coordinator_address": "10.0.0.2:1234",
        "num_processes": 3,
        "process_id": 0,
        "cluster_detection_method": "deactivate",
    }
    assert arguments({}, coordinator="auto") == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"process_id": 1}, "--process_id without --coordinator, --num_processes; give all three"),
        ({"coordinator": "a:1", "num_processes": 2}, "--num_processes without --process_id"),
        ({"coordinator": "auto", "num_processes": 2}, "leave out --num_processes"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "expected 0 to 1 of 2"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": -1}, "found -1"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "expected 1 or more"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "expected host:port"),
        ({"coordinator": "a:65536", "num_processes": 2, "process_id": 0}, "from 1 to 65535"),
    ],
)
def test_contradictory_flags_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        arguments({}, **flags)
