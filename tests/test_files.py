import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from regionclip_jax import files
from regionclip_jax.files import locked_folder, replace_text, replaced_file
from regionclip_jax.untrusted import open_regular, read_bytes, read_large_json


def test_text_is_written_unchanged_and_folders_are_created(tmp_path):
    path = tmp_path / "new" / "names.txt"
    replace_text(path, "caf\u00e9\n")
    replace_text(str(path), "caf\u00e9\r\n\n")
    assert path.read_bytes() == b"caf\xc3\xa9\r\n\n"
    assert os.listdir(path.parent) == ["names.txt"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_remains_without_partial_files(tmp_path, error):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(error), replaced_file(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    path, calls = tmp_path / "card.json", []
    path.write_text("old")

    def synced(number):
        calls.append(("synced", os.fstat(number).st_size, path.read_text()))

    def replaced(partial, target):
        calls.append(("replaced", path.read_text()))
        os.rename(partial, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    with replaced_file(path) as file:
        file.write(b"new card")
        assert path.read_text() == "old"
    assert calls == [("synced", 8, "old"), ("replaced", "old")]
    assert path.read_text() == "new card"


HOLD = """
import sys, time
from regionclip_jax.files import locked_folder
with locked_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_names_its_holder_and_ends_with_a_killed_process(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"{tmp_path} is being written by process {holder.pid} on .*: wait for it"
        with pytest.raises(FileExistsError, match=message), locked_folder(tmp_path):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    finally:
        holder.kill()
        holder.stdout.close()
    with locked_folder(tmp_path) as locked:
        assert locked
    with locked_folder(tmp_path):  # also after a holder that ended by itself
        pass
    text = (tmp_path / ".lock").read_text()
    assert text == f"process {os.getpid()} on {socket.gethostname()}\n"  # of the last holder alone


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refused(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refused)
    with locked_folder(tmp_path) as locked:
        assert not locked


def test_only_regular_files_are_opened_and_none_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
            for read, *more in ((open_regular,), (read_bytes, 9), (read_json, "")):
                with pytest.raises(FileNotFoundError, match="expected a regular file"):
                    read(path, *more)
        with pytest.raises(OSError):
            open_regular(tmp_path / "socket")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link", 7) == b"content"
    with pytest.raises(ValueError, match="file has more than 6 bytes"):
        read_bytes(tmp_path / "file", 6)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"\xff", b"1" * 5000, b"\x80\x02]"])
def test_broken_json_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not JSON \(.*\): copy it again") as error:
        read_large_json(tmp_path / "a.json", "copy it again")
    assert "\n" not in str(error.value)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1, NaN]")
    assert read_large_json(tmp_path / "a.json", "")[0] == 1
