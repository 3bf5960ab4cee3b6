"""Limits on files of a key, on parameters and on definitions without a caller."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Other libraries or users call these names.
CALLED_FROM_OUTSIDE = {
    "persistent_load",  # pickle
    "repr_bytes", "repr_int",  # reprlib
    "write_audios", "write_histograms", "write_hparams", "write_summaries", "write_videos",  # CLU
    "_repr_html_",  # notebooks
    "send_400_response",  # uvicorn
    "read_detections",  # reader of a file format that evaluations write
}  # fmt: skip


def test_settings_keys_are_in_few_files_and_functions_have_few_parameters():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "count_key_files.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "longest parameter list" in done.stdout and "lines in" in done.stdout


def test_every_definition_is_used_outside_tests():
    used = collections.Counter()
    defined = {}
    folders = ("regionclip_jax", "scripts", "configs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=name):
                    used[name] += 1
                case ast.Constant(value=str(name)):
                    used[name] += 1
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    if path.is_relative_to(ROOT / "regionclip_jax") and not name.startswith("__"):
                        defined[name] = path.relative_to(ROOT).as_posix()
    unused = {name: path for name, path in defined.items() if not used[name]}
    assert unused.keys() == CALLED_FROM_OUTSIDE, unused
