"""Launch scripts, with mock commands on PATH that record their arguments."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.command

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
FLAGS = [
    "--config=configs/pretrain.py:scenes",
    "--config.data.sizes=((96,96),)",
    "--name=it's $HOME",
]

# A slice of two hosts, each a folder. `describe` prints the content of the file `state`.
GCLOUD = """#!/bin/bash
printf '%s\\0' "$@" >>"$FAKE/asked"; echo >>"$FAKE/asked"
case "$3 $4" in
  "tpu-vm describe") [ -s "$FAKE/state" ] && cat "$FAKE/state" ;;
  "queued-resources describe") [ -s "$FAKE/queue" ] && cat "$FAKE/queue" ;;
  "queued-resources create") echo ACTIVE >"$FAKE/queue" ;;
  "tpu-vm ssh")
    for argument in "$@"; do
      case "$argument" in
        --worker=all) hosts="host0 host1" ;;
        --worker=0) hosts="host0" ;;
        --command=*) command="${argument#--command=}" ;;
      esac
    done
    for host in $hosts; do (cd "$FAKE/$host" && bash -c "$command") || exit; done ;;
esac
"""

# The main job prints its arguments and waits for SIGTERM.
JOB = """#!/bin/bash
trap 'echo saved; exit 75' TERM
printf '<%s>\\n' "$@"
for _ in {1..600}; do sleep 0.1; done
"""

RECORDER = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >>"$FAKE/asked"; echo >>"$FAKE/asked"
[ "${0##*/}" != srun ] || exit "${SRUN_STATUS:-0}"
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def tpu_pod(tmp_path):
    """``tpu_pod(*arguments)``: the script's completed process, with a mock ``gcloud``."""
    write_program(tmp_path / "bin" / "gcloud", GCLOUD)
    for host in ("host0", "host1"):
        write_program(tmp_path / host / "regionclip_jax" / ".venv" / "bin" / "python", JOB)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FAKE": str(tmp_path), "TPU_POLL_SECONDS": "0"}

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [SCRIPTS / "tpu_pod.sh", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    run.environment = environment
    return run


def recorded_calls(folder: Path) -> list[list[str]]:
    """Return the arguments of every call, in order."""
    file = folder / "asked"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.split("\0")[:-1] for line in lines]


def test_scripts_pass_shellcheck():
    # The program of this environment, which may be missing on PATH.
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    files = [*SCRIPTS.glob("*.sh"), SCRIPTS / "slurm.sbatch", ROOT / ".ci" / "run"]
    assert len(files) >= 7
    done = subprocess.run([shellcheck, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_slice_is_created_once_and_reused(tpu_pod, tmp_path):
    create = [
        "create",
        "pod",
        "--type",
        "v5litepod-16",
        "--version",
        "img",
        "--zone",
        "z1",
        "--spot",
    ]
    tpu_pod(*create)
    describe, made = recorded_calls(tmp_path)
    assert describe[:5] == ["compute", "tpus", "tpu-vm", "describe", "pod"]
    assert (
        made
        == (
            "compute tpus tpu-vm create pod "
            "--accelerator-type=v5litepod-16 --version=img --spot --zone=z1"
        ).split()
    )
    (tmp_path / "state").write_text("READY\n")
    assert "is ready and used again" in tpu_pod(*create).stdout
    assert len(recorded_calls(tmp_path)) == 3
    (tmp_path / "state").write_text("PREEMPTED\n")
    assert "is PREEMPTED; scripts/tpu_pod.sh delete pod" in tpu_pod(*create, status=1).stderr
    assert "needs --type and --version" in tpu_pod("create", "pod", status=1).stderr


def test_a_queued_slice_is_awaited_and_deleted_with_its_queued_resource(tpu_pod, tmp_path):
    done = tpu_pod("create", "pod", "--type", "t", "--version", "v", "--queued")
    assert "queued resource pod: ACTIVE" in done.stdout
    verbs = [call[2:4] for call in recorded_calls(tmp_path)]
    assert ["queued-resources", "create"] in verbs and ["tpu-vm", "create"] not in verbs
    tpu_pod("delete", "pod")
    assert recorded_calls(tmp_path)[-1][2:] == [
        "queued-resources",
        "delete",
        "pod",
        "--force",
        "--quiet",
    ]
    (tmp_path / "queue").unlink()
    tpu_pod("delete", "pod", "--project", "p")
    assert recorded_calls(tmp_path)[-1][2:] == ["tpu-vm", "delete", "pod", "--quiet", "--project=p"]


def test_a_job_gets_its_flags_unchanged_on_every_host_and_is_stopped(tpu_pod, tmp_path):
    hosts = [tmp_path / name / "regionclip_jax" for name in ("host0", "host1")]
    # The command shows the log until the job ends, so it runs in a separate process.
    shown = subprocess.Popen(
        [SCRIPTS / "tpu_pod.sh", "run", "pod", "--", *FLAGS],
        env=tpu_pod.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 100
        while not all(
            (h / "run.log").exists() and "it's" in (h / "run.log").read_text() for h in hosts
        ):
            assert shown.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        expected = [
            "-m",
            "regionclip_jax.main",
            "--coordinator=auto",
            "--preempted_status=75",
            *FLAGS,
        ]
        for host in hosts:
            assert (host / "run.log").read_text().splitlines() == [f"<{flag}>" for flag in expected]
        assert "a job is running here" in tpu_pod("run", "pod", "--", "--x", status=1).stderr
    finally:
        tpu_pod("stop", "pod")
        output = shown.communicate(timeout=100)[0]
    assert f"<{FLAGS[-1]}>" in output and "saved" in output and "exit status 75" in output
    assert "no job is running here" in tpu_pod("stop", "pod").stdout


def test_the_last_commit_is_copied_to_all_hosts(tpu_pod, tmp_path):
    scp, ssh = [
        shlex.split(line) for line in tpu_pod("install", "pod", "--dry-run").stdout.splitlines()[1:]
    ]
    assert scp[3:5] == ["tpu-vm", "scp"] and scp[-1] == "--worker=all"
    assert scp[6] == f"pod:{Path(scp[5]).name}" and f"tar -xzf {Path(scp[5]).name} " in ssh[-1]
    assert "for lock in '-r locks/build.txt' '-r locks/tpu.txt' '--no-deps -e .'; do" in ssh[-1]
    assert "--no-build-isolation -p .venv $lock; done" in ssh[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "pod", "--type", "t", "--version", "v", "--queued"],
        ["install", "pod"],
        ["run", "pod", "--", *FLAGS],
        ["logs", "pod"],
        ["stop", "pod"],
        ["delete", "pod"],
    ],
)
def test_a_dry_run_prints_commands_and_runs_none(tpu_pod, tmp_path, arguments):
    done = tpu_pod("--dry-run", *arguments)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines and all(line[0] in ("gcloud", "git") for line in lines)
    assert recorded_calls(tmp_path) == []


def test_invalid_arguments_and_help_run_no_command(tpu_pod, tmp_path):
    assert "--dry-run" in tpu_pod("create", "--help").stdout
    assert "unknown option --zoned" in tpu_pod("create", "pod", "--zoned", "z", status=1).stderr
    assert "come after --" in tpu_pod("run", "pod", "more", status=1).stderr
    assert "needs the name" in tpu_pod("delete", status=1).stderr
    assert "needs the flags of the job" in tpu_pod("run", "pod", status=1).stderr
    assert "takes no flags" in tpu_pod("stop", "pod", "--", "--x", status=1).stderr
    assert "Usage" in tpu_pod("start", "pod", status=2).stderr
    assert recorded_calls(tmp_path) == []


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (1, False)])
def test_slurm_starts_one_process_per_node_and_requeues_a_stopped_run(tmp_path, status, requeued):
    for name in ("srun", "scontrol"):
        write_program(tmp_path / "bin" / name, RECORDER)
    # The job is submitted from a repository with its environment.
    write_program(
        tmp_path / "scripts" / "environment.sh", 'make_environment() { echo "made $1"; }\n'
    )
    shutil.copy(SCRIPTS / "slurm.sbatch", tmp_path / "slurm_script")
    done = subprocess.run(
        ["bash", tmp_path / "slurm_script", *FLAGS],
        env={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(tmp_path),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "31",
            "SLURM_CPUS_PER_TASK": "8",
            "SRUN_STATUS": str(status),
        },
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == status and "made gpu" in done.stdout, done.stderr
    srun, *others = recorded_calls(tmp_path)
    python = srun.index(".venv/bin/python")
    assert srun[:python] == [
        "srun",
        "--cpus-per-task=8",
        "--output=slurm-%j.%t.log",
        "--open-mode=append",
    ]
    assert srun[python + 1 :] == ["-m", "regionclip_jax.main", "--preempted_status=75", *FLAGS]
    assert others == ([["scontrol", "requeue", "31"]] if requeued else [])


def test_the_slurm_job_requests_whole_nodes_a_signal_and_requeueing():
    asks = re.findall(r"^#SBATCH (--[^\s=]+)=?(\S*)$", (SCRIPTS / "slurm.sbatch").read_text(), re.M)
    asks = dict(asks)
    assert asks["--ntasks-per-node"] == "1" and asks["--signal"] == "TERM@120"
    assert "--requeue" in asks and asks["--open-mode"] == "append"


def test_the_image_copies_files_that_exist_and_installs_locks_that_exist():
    lines = [
        shlex.split(line)
        for line in (SCRIPTS / "Containerfile").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert {line[0] for line in lines} == set("FROM RUN WORKDIR COPY USER ENTRYPOINT".split())
    copied = [source for line in lines if line[0] == "COPY" for source in line[1:-1]]
    assert all((ROOT / source).exists() for source in copied)
    # The build of the package reads these files; the recipes are outside the package.
    needed = {
        "regionclip_jax",
        "setup.py",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "third_party",
    }
    assert needed | {"configs", "locks"} <= set(copied)
    installs = [line for line in lines if line[:3] == ["RUN", "pip", "install"]]
    assert [line[-2:] for line in installs] == [
        ["-r", "locks/build.txt"],
        ["-r", "locks/gpu.txt"],
        ["-e", "."],
    ]
    assert all((ROOT / line[-1]).exists() for line in installs)
    assert [line[0] for line in lines].index("USER") > lines.index(installs[-1])
    assert (SCRIPTS / "Containerfile").read_text().rstrip().endswith('"-m", "regionclip_jax.main"]')


def test_no_seed_follows_a_stopped_run(tmp_path):
    script = "detection_seeds.sh"
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / script, tmp_path / "scripts" / script)
    (tmp_path / "scripts" / "environment.sh").write_text("make_environment() { :; }\n")
    stopped = 'printf "%s\\n" "$*" >>asked\ncase "$*" in *--preempted_status=75*) exit 75;; esac\n'
    write_program(tmp_path / ".venv" / "bin" / "python", "#!/bin/bash\n" + stopped)
    done = subprocess.run(["bash", tmp_path / "scripts" / script], capture_output=True, text=True)
    assert done.returncode == 75
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["DIR", "--config.seed=1"]])
def test_the_quickstart_passes_its_arguments_on(tmp_path, arguments):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "quickstart.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "environment.sh").write_text("make_environment() { :; }\n")
    write_program(
        tmp_path / ".venv" / "bin" / "python", '#!/bin/bash\nprintf "%s\\n" "$*" >>asked\nexit 3\n'
    )
    done = subprocess.run(["bash", tmp_path / "scripts" / "quickstart.sh", *arguments])
    workdir, flags = (arguments[0], [" ", arguments[1]]) if arguments else ("workdir/scenes", [])
    assert done.returncode == 3 and (tmp_path / "asked").read_text().splitlines() == [
        f"-m regionclip_jax.main --config=configs/pretrain.py --workdir={workdir}{''.join(flags)}"
    ]


QUICK = "cpu -n 2 --dist worksteal -m not slow"
# Mock of the environment's python that prints a platform and records the calls of pytest.
TEST_PYTHON = """#!/bin/bash
[ "$1" != -c ] || { echo "$PLATFORM"; exit; }
echo "${JAX_PLATFORMS:-unpinned} $*" >>asked
case "$*" in *"-m gpu"*) exit "$GPU_STATUS" ;; esac
"""


@pytest.mark.parametrize(
    ("platform", "gpu_status", "arguments", "status", "says", "passes"),
    [
        (
            "gpu",
            0,
            ["tests/ops"],
            0,
            "quick tests",
            [f"{QUICK} tests/ops"],
        ),
        ("cpu", 0, [], 0, "quick tests", [f"{QUICK} tests/ops", f"{QUICK} --ignore=tests/ops"]),
        (
            "cpu",
            0,
            ["--all", "-x"],
            0,
            "no accelerator: tests run on the CPU only",
            ["cpu -n 2 -x"],
        ),
        ("gpu", 0, ["--all"], 0, "then those marked gpu", ["cpu -n 2", "unpinned -n 0 -m gpu"]),
        # Exit status 5 of pytest means that none of the selected tests has the mark.
        ("gpu", 5, ["--all"], 0, "then those marked gpu", ["cpu -n 2", "unpinned -n 0 -m gpu"]),
        ("gpu", 1, ["--all"], 1, "then those marked gpu", ["cpu -n 2", "unpinned -n 0 -m gpu"]),
    ],
)
def test_marked_tests_run_again_if_there_is_an_accelerator(
    tmp_path, platform, gpu_status, arguments, status, says, passes
):
    write_program(tmp_path / "scripts" / "test.sh", (SCRIPTS / "test.sh").read_text())
    (tmp_path / "scripts" / "environment.sh").write_text("make_environment() { :; }\n")
    write_program(tmp_path / ".venv" / "bin" / "python", TEST_PYTHON)
    done = subprocess.run(
        [tmp_path / "scripts" / "test.sh", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "PLATFORM": platform,
            "GPU_STATUS": str(gpu_status),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    (line,) = done.stdout.splitlines()
    assert says in line
    recorded_calls = (tmp_path / "asked").read_text().replace("-m pytest -q ", "").splitlines()
    assert recorded_calls == passes
