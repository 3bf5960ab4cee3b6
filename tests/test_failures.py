import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regionclip_jax.failures import (
    TRACEBACK_VARIABLE,
    ExitStatus,
    Unreachable,
    explain,
    one_line,
)
from regionclip_jax.files import replaced_file
from regionclip_jax.settings import ConfigError

ROOT = Path(__file__).parents[1]

# As Orbax raises it from a save on a full disk, shortened.
TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Error writing "opt_state.0.count/0" in OCDBT database at local file '
    '"/runs/w/4.orbax-checkpoint-tmp/": Failed writing: "/runs/w/4.orbax-checkpoint-tmp/d/14f": '
    "Failed to write 1412701 bytes to file 20: No space left on device [os_error_code='28']"
)


@pytest.mark.parametrize(
    ("number", "status", "remedy"),
    [
        (errno.ENOSPC, 73, "free space there"),
        (errno.EDQUOT, 73, "quota"),
        (errno.EFBIG, 73, "ulimit -f"),
        (errno.EROFS, 77, "mount it for writing"),
        (errno.EACCES, 77, "give this user the permission"),
        (errno.EPERM, 77, "give this user the permission"),
        (errno.ENOENT, 66, "bring it back"),
        (errno.ENOTDIR, 66, "bring it back"),
        (errno.ESTALE, 66, "bring it back"),
        (errno.EIO, 74, "check the disk"),
        (errno.EEXIST, 1, "move it away"),
    ],
)
def test_a_failure_of_the_machine_has_a_status_a_path_and_a_remedy(number, status, remedy, capsys):
    @one_line(prefix="regionclip_jax")
    def main():
        raise OSError(number, os.strerror(number), "/runs/w/results.json")

    assert main() == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"regionclip_jax: /runs/w/results.json: {os.strerror(number)}; ")
    assert remedy in line and ("start the same command again" in line or status == 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(TENSORSTORE), "/runs/w/4.orbax-checkpoint-tmp/d/14f: No space left on device;"),
        (ValueError('NOT_FOUND: Error writing "step/0": "/w/4/d/81f"'), "/w/4/d/81f: No such file"),
        (RuntimeError("Failed to close /a/shard-1: Permission denied"), "/a/shard-1: Permission"),
    ],
)
def test_errors_of_libraries_are_recognized_by_their_text(error, expected):
    status, message = explain(error)
    assert message.startswith(expected) and status in (66, 73, 77)


def test_mistakes_have_the_status_1_and_bugs_keep_their_traceback(capsys):
    @one_line(KeyError)
    def main(error):
        raise error

    assert main(ConfigError("run.seed: expected a number,\n  found 'a'")) == 1
    assert capsys.readouterr().err == "error: run.seed: expected a number, found 'a'\n"
    assert main(FileNotFoundError("names.txt does not exist")) == 1
    assert main(KeyError("a mistake of this command")) == 1
    assert main(Unreachable("--coordinator: ...")) == ExitStatus.UNREACHABLE == 69
    for bug in (ValueError("shapes differ"), TypeError("No space for an argument")):
        with pytest.raises(type(bug)):
            main(bug)


def test_the_traceback_is_printed_when_the_environment_asks_for_it(monkeypatch, capsys):
    @one_line()
    def main():
        raise OSError(errno.EIO, "Input/output error", "/data")

    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert main() == 74
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback") and "\nerror: /data: Input/output error; " in errors


def test_a_full_stderr_does_not_change_the_status(monkeypatch):
    @one_line()
    def main():
        raise OSError(errno.ENOSPC, "No space left on device", "/data")

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main() == 73
        monkeypatch.undo()
        # Closing would write the line again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_errors_with_a_status_survive_the_way_from_a_worker_process():
    assert explain(pickle.loads(pickle.dumps(Unreachable("host a:1")))) == (69, "host a:1")


LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
from regionclip_jax.failures import one_line
from regionclip_jax.files import replaced_file

@one_line()
def main():
    with replaced_file(sys.argv[1]) as file:
        file.write(bytes(2000))

sys.exit(main())
"""


def test_a_replaced_file_names_itself_when_it_cannot_be_written(tmp_path):
    """A limit of file sizes stands for a full disk, which needs the right to mount one."""
    path = tmp_path / "results.json"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == ExitStatus.NO_SPACE
    assert done.stderr.startswith(f"error: {path}: File too large; raise the limit of file sizes")
    assert len(done.stderr.splitlines()) == 1
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]


def test_a_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, expected in (("file", ExitStatus.ERROR), ("file/more", ExitStatus.MISSING)):
        with pytest.raises(OSError) as caught, replaced_file(tmp_path / folder / "results.json"):
            pass
        status, message = explain(caught.value)
        assert status == expected and message.startswith(f"{tmp_path}/file")


def test_the_documents_list_every_status():
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## Exit statuses")
    listed = re.findall(r"^\| (\d+) \|", section.partition("\n## ")[0], re.MULTILINE)
    assert sorted(map(int, listed)) == sorted([0, *ExitStatus, 130, 137, 143])


def test_a_command_takes_arguments_by_name_as_the_scripts_give_them():
    @one_line()
    def main(arguments=None, default_topology=None):
        return 0 if default_topology == "h100:8" else 1

    assert main(default_topology="h100:8") == 0
