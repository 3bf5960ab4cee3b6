import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_concepts.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.command
def test_captions_become_a_pool(tmp_path):
    coco, lines = tmp_path / "captions.json", tmp_path / "captions.txt"
    captions = ["A dog and two cats on a park bench.", "Two dogs sleeping on top of a bench."]
    coco.write_text(json.dumps({"annotations": [{"caption": c} for c in captions]}))
    # Flickr8k's: file names are no captions.
    lines.write_text("image,caption\n1.jpg,a cat\n1.jpg\n2.jpg,a man, with a dog\n")
    (tmp_path / "stop.txt").write_text("bench\n")
    (tmp_path / "add.txt").write_text("unicorn\n")
    output = tmp_path / "concepts.txt"
    done = run(
        "--captions", coco, lines, "--output", output, "--min-count", 2, "--processes", 1,
        "--stop", tmp_path / "stop.txt", "--add", tmp_path / "add.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"3 concepts of 4 captions: {output}" in done.stdout
    assert "skipped: rows without caption 1 (captions.txt 3)" in done.stdout
    assert output.read_text() == "dog\t3\ncat\t2\nunicorn\t0\n"


@pytest.mark.command
def test_a_pool_without_concepts_is_refused_and_nothing_is_written(tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a cat\n")
    done = run("--captions", captions, "--output", tmp_path / "out.txt", "--processes", 1)
    assert done.returncode == 1
    assert "error: none of 1 concepts is named in 100 of 1 captions" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out.txt").exists()
