"""Digests of files, and what they find in a model directory with all its parts."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, strategies

from regionclip_jax.artifacts import digests
from regionclip_jax.artifacts.detector_heads import (
    HeadsCard,
    HeadsConfig,
    init_heads,
    load_heads,
    save_heads,
)
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer, save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model, save_model


def flip_bit(path: Path, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[number // 8] ^= 1 << number % 8
    path.write_bytes(data)


def write(folder: Path) -> list[Path]:
    (folder / "deep").mkdir(parents=True)
    contents = {"a": b"", "b": b"text", "deep/c": bytes(range(256)) * 9}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@pytest.mark.parametrize("part", [2**24, 100])
def test_missing_longer_and_changed_files_are_named(tmp_path, monkeypatch, part):
    monkeypatch.setattr(digests, "_PART", part)
    monkeypatch.setattr(digests, "_BLOCK", 64)
    files = write(tmp_path)
    digests.write_digests(tmp_path, files, texts={"later": "é" * 99})
    (tmp_path / "later").write_text("é" * 99, encoding="utf-8")
    (tmp_path / "unlisted").write_text("of somebody else")
    assert digests.find_damage(tmp_path) == []
    content = json.loads((tmp_path / "digests.json").read_text())["files"]
    assert list(content) == ["a", "b", "deep/c", "later"] and content["a"]["crc32"] == []
    assert len(content["deep/c"]["crc32"]) == -(-2304 // part)

    flip_bit(tmp_path / "deep" / "c", 8 * 2303)
    (tmp_path / "b").write_bytes(b"texts")
    (tmp_path / "a").unlink()
    found = digests.find_damage(tmp_path)
    expected = ["a: missing", "b: 5 bytes, expected 4", "deep/c: changed since it was written"]
    assert len(found) == 3
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(f"{tmp_path}/{start}")
    shares = [digests.find_damage(tmp_path, share=(k, 2)) for k in range(2)]
    assert sorted(sum(shares, [])) == found and all(shares)
    assert digests.find_damage(tmp_path, names={"later"}) == []
    assert "not all of" in digests.find_damage(tmp_path, names={"unlisted"})[0]


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    digests.write_digests(tmp_path, write(tmp_path))
    digest = digests._digest

    def bad_block(path, start, function):
        if path.name == "c":
            raise OSError(5, "Input/output error")
        return digest(path, start, function)

    monkeypatch.setattr(digests, "_digest", bad_block)
    (found,) = digests.find_damage(tmp_path)
    assert found.startswith(f"{tmp_path / 'deep' / 'c'}: cannot be read ([Errno 5]")


def test_digests_of_format_1_are_checked(tmp_path):
    """Folders of earlier versions have SHA-256."""
    files = write(tmp_path)
    entries = {
        path.relative_to(tmp_path).as_posix(): {
            "bytes": len(path.read_bytes()),
            "sha256": [hashlib.sha256(path.read_bytes()).hexdigest()] if path.name != "a" else [],
        }
        for path in files
    }
    content = json.dumps({"format": 1, "files": entries})
    (tmp_path / "digests.json").write_text(content, encoding="utf-8")
    assert digests.find_damage(tmp_path) == []
    flip_bit(tmp_path / "deep" / "c", 5)
    (found,) = digests.find_damage(tmp_path)
    assert found.startswith(f"{tmp_path / 'deep' / 'c'}: changed since it was written")


def test_the_digest_of_a_part_is_its_crc_32(tmp_path):
    (tmp_path / "file").write_bytes(b"123456789")
    digests.write_digests(tmp_path, [tmp_path / "file"])
    content = json.loads((tmp_path / "digests.json").read_text())
    # The check value of the CRC-32 of zlib, gzip and PNG.
    assert content == {"format": 2, "files": {"file": {"bytes": 9, "crc32": ["cbf43926"]}}}


def test_a_folder_without_digests_is_not_checked(tmp_path):
    write(tmp_path)
    assert digests.find_damage(tmp_path) is None


@pytest.mark.property
@given(data=strategies.data())
def test_a_random_bit_of_the_digests_is_found_or_changes_none(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("digests") / "folder"
    digests.write_digests(folder, write(folder))
    path = folder / "digests.json"
    before = json.loads(path.read_text())
    flip_bit(path, data.draw(strategies.integers(0, 8 * path.stat().st_size - 1)))
    if not digests.find_damage(folder):
        assert json.loads(path.read_text()) == before


@pytest.fixture(scope="module")
def directory(tmp_path_factory, nano_configs, nano_variables, nano_localizer) -> Path:
    """A model directory with a localizer and heads."""
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, nano_variables("vit"), ModelCard(nano_configs["vit"], {"run": "test"}))
    card, variables = nano_localizer
    save_localizer(folder, variables, card)
    config = HeadsConfig(32, None)
    save_heads(folder, init_heads(config, jax.random.key(0)), HeadsCard(config, {}))
    return folder


def load(folder: Path) -> list[np.ndarray]:
    loaded = load_model(folder), load_localizer(folder), load_heads(folder)
    return [leaf for variables, _ in loaded for leaf in jax.tree.leaves(variables)]


def test_a_flipped_bit_in_any_file_of_a_model_directory_is_found(directory, tmp_path):
    names = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    names = [name for name in names if name.name != ".lock"]
    assert {str(name) for name in names} >= {
        *("card.json", "digests.json", "heads/card.json", "localizer/card.json"),
        *("params/manifest.ocdbt", "localizer/params/_METADATA", "heads/digests.json"),
    }
    folder = shutil.copytree(directory, tmp_path / "model")
    assert len(load(folder)) > 20
    draws = np.random.default_rng(0)
    for name in names:
        content = (folder / name).read_bytes()
        # The first bits of a file of digests are no white space.
        flip_bit(
            folder / name, 3 if name.name == "digests.json" else draws.integers(8 * len(content))
        )
        with pytest.raises(CheckpointMismatch) as caught:
            load(folder)
        assert str(caught.value).startswith(f"{folder / name}: ")
        assert "copy the directory again" in str(caught.value)
        (folder / name).write_bytes(content)
    flip_bit(folder / "card.json", 40)
    with pytest.raises(CheckpointMismatch, match=r"card\.json: changed"):
        load_card(folder)
