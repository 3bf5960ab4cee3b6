"""Files of others: regular ones alone, and broken JSON in one line."""

import os
import socket

import pytest

from regionclip_jax.untrusted import open_regular, read_bytes, read_large_json


def test_only_regular_files_are_opened_and_none_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
            for read, *more in ((open_regular,), (read_bytes, 9), (read_large_json, "")):
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
