"""Errors of users: one line with the key or file and the remedy, without a traceback."""

import os
import shutil

import pytest

from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.records import ImageTextRecord
from regionclip_jax.files import locked_folder

pytestmark = pytest.mark.command


def test_an_unknown_key_is_refused_with_the_nearest_known_key(run_main, error_message, tmp_path):
    done = run_main("configs/pretrain.py", tmp_path, "--config.scenes.num_closeup=1")
    assert "did you mean 'num_closeups'" in error_message(done)


def test_an_unknown_variant_is_refused_with_the_known_variants(run_main, error_message, tmp_path):
    message = error_message(run_main("configs/pretrain.py:rn51_coco", tmp_path))
    assert "'rn51_coco' is none of" in message and "rn50_coco" in message


def test_a_missing_recipe_is_named(run_main, error_message, tmp_path):
    assert "configs/pretain.py" in error_message(run_main("configs/pretain.py", tmp_path))


def test_a_value_of_another_type_is_refused_with_its_key(run_main, error_message, tmp_path):
    message = error_message(run_main("configs/pretrain.py", tmp_path, "--config.seed=abc"))
    assert "config.seed" in message and "abc" in message


def test_a_missing_data_folder_is_refused_with_its_flag(
    run_main, error_message, pretrain_recipe, tmp_path
):
    done = run_main(pretrain_recipe, tmp_path, "--config.data.path=nowhere")
    message = error_message(done)
    assert "data.path: 'nowhere' does not exist" in message and "--config.data.path" in message


def test_a_captions_file_without_captions_is_named(
    run_main, error_message, pretrain_recipe, tmp_path
):
    message = error_message(run_main(pretrain_recipe, tmp_path, "--config.data.split=empty"))
    assert "captions_empty.json has no captions: expected" in message


def test_a_missing_concepts_file_is_named(run_main, error_message, pretrain_recipe, tmp_path):
    flag = "--config.concepts.names_file=nouns.txt"
    message = error_message(run_main(pretrain_recipe, tmp_path, flag))
    assert "concepts.names_file: nouns.txt does not exist" in message


def test_weights_of_another_architecture_are_refused(
    run_main, error_message, pretrain_recipe, model_directory, tmp_path
):
    done = run_main(pretrain_recipe, tmp_path, "--config.student.preset=tiny")
    message = error_message(done)
    assert f"{model_directory}: holds scenes, the recipe wants preset 'tiny'" in message


def test_a_model_directory_with_a_truncated_file_is_refused(
    run_main, error_message, pretrain_recipe, model_directory, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(model_directory, broken)
    largest = max((p for p in broken.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    flags = [f"--config.{role}.init_from={broken}" for role in ("student", "teacher")]
    message = error_message(run_main(pretrain_recipe, tmp_path / "run", *flags))
    assert f"{largest}: " in message and "bytes, expected" in message
    assert "copy the directory again" in message


def test_a_truncated_record_shard_is_named(run_main, error_message, pretrain_recipe, tmp_path):
    records = [ImageTextRecord(f"{i}", b"", ("a cat",)) for i in range(3)]
    write_array_record(records, tmp_path / "set", 2, {})
    shard = tmp_path / "set" / "shard-00001.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-100_000])
    flags = ["--config.data.source=array_record", f"--config.data.path={tmp_path / 'set'}"]
    message = error_message(run_main(pretrain_recipe, tmp_path / "run", *flags))
    assert f"data: {shard}: expected an ArrayRecord file" in message and "copy it" in message


def test_synthetic_scenes_of_another_recipe_are_not_overwritten(run_main, error_message, tmp_path):
    few = [f"--config.scenes.num_{part}=2" for part in ("closeups", "scenes", "test")]
    (tmp_path / "data" / "whole_images").mkdir(parents=True)
    message = error_message(run_main("configs/pretrain.py", tmp_path, *few))
    assert "whole_images" in message and "delete it or choose another path" in message


def test_a_workdir_with_an_address_is_refused(run_main, error_message):
    message = error_message(run_main("configs/pretrain.py", "gs://bucket/run"))
    assert "'gs://bucket/run' is an address, expected a folder; mount the bucket" in message


def test_a_missing_cluster_and_incomplete_cluster_flags_are_refused(
    run_main, error_message, tmp_path
):
    message = error_message(run_main("configs/pretrain.py", tmp_path, "--process_id=1"))
    assert "--process_id without --coordinator, --num_processes" in message
    message = error_message(run_main("configs/pretrain.py", tmp_path, "--coordinator=auto"))
    assert "the processes of the run could not be joined" in message


def test_a_workdir_of_another_run_is_refused_with_its_process(run_main, error_message, tmp_path):
    with locked_folder(tmp_path):
        message = error_message(run_main("configs/pretrain.py", tmp_path))
    assert f"--workdir: {tmp_path} is being written by process {os.getpid()} on" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
