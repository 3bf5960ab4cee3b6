"""The command that prepares data sets."""

import runpy
from pathlib import Path

import pytest

from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.array_record_format import read_manifest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.command


@pytest.fixture(scope="module")
def prepare_data():
    main = runpy.run_path(str(ROOT / "scripts" / "prepare_data.py"))["main"]
    return lambda *arguments: main([str(argument) for argument in arguments])


def test_a_folder_is_prepared_and_verified_and_damage_is_detected(
    prepare_data, coco_folder, tmp_path, capsys
):
    output = tmp_path / "deep" / "prepared"
    source = ["--source", "coco_folder", "--path", coco_folder, "--split", "train"]
    # One of 14 captions is blank, and one of the 13 other images is corrupt.
    how = ["--workers", 1, "--short-side", 40, "--max-skipped-fraction", 0.1]
    assert prepare_data(*source, "--output", output, *how) == 0
    prepared = ArrayRecordSource(output)
    manifest = read_manifest(output)
    assert manifest["description"]["source"]["report"]["captions_blank"] == 1
    assert manifest["skipped"]["broken picture"]["count"] == 1
    assert len(prepared) == 12 and prepared.sizes().min(1).tolist() == [40] * 12
    assert prepare_data("--verify", output) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    (output / "sizes.npy").write_bytes(b"")
    assert prepare_data("--verify", output) == 1
    assert "sizes.npy: 0 bytes, expected" in capsys.readouterr().out


def test_boxes_are_prepared_with_their_classes(prepare_data, coco_folder, tmp_path):
    source = ["--source", "coco_folder", "--path", coco_folder, "--split", "val", "--boxes"]
    assert prepare_data(*source, "--output", tmp_path / "set", "--workers", 1, "--limit", 3) == 0
    prepared = ArrayRecordSource(tmp_path / "set")
    assert prepared.kind == "detection" and len(prepared) == 3
    assert prepared.category_names == ("dog", "cat", "sheep")
    assert [len(prepared[i].boxes) for i in range(3)] == [2, 3, 1]


def test_a_benchmark_reports_the_gain_of_preparing(prepare_data, coco_folder, tmp_path, capsys):
    source = ["--source", "coco_folder", "--path", coco_folder, "--split", "val", "--boxes"]
    assert prepare_data(*source, "--output", tmp_path / "set", "--benchmark", 5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 records") and "preparing" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_invalid_arguments_are_a_one_line_error(prepare_data, coco_folder, tmp_path, capsys):
    output = ["--output", tmp_path / "set"]
    with pytest.raises(SystemExit):
        prepare_data("--source", "coco_folder", *output)
    with pytest.raises(SystemExit):
        prepare_data("--source", "coco_folder", "--path", "nowhere", *output)
    assert "--path: 'nowhere' does not exist" in capsys.readouterr().err
    assert prepare_data("--source", "lmdb", "--path", coco_folder, *output) == 1
    assert "'lmdb' is none of ['array_record', 'caption_table'" in capsys.readouterr().err
    assert prepare_data("--verify", tmp_path) == 1
    assert "has no manifest.json" in capsys.readouterr().err
