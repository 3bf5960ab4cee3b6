import dataclasses
import pickle
import struct
import zipfile

import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.vocabulary import (
    Vocabulary,
    describe_encoder,
    require_matching,
    text_tower_hash,
)
from regionclip_jax.models.presets import PRESETS

TEXT = {"text": {"projection": np.ones((2, 3), np.float32), "ln_final": {"bias": np.ones(2)}}}


def make_vocabulary(encoder=None, dim=64) -> Vocabulary:
    embeddings = np.random.default_rng(0).standard_normal((2, dim)).astype(np.float32)
    encoder = encoder or describe_encoder(PRESETS["tiny"], TEXT)
    return Vocabulary(("cat", "Hörnchen"), embeddings, ("a photo of a {}.",), encoder)


def test_a_saved_vocabulary_is_loaded_unchanged(tmp_path):
    vocabulary = make_vocabulary()
    vocabulary.save(tmp_path / "new" / "vocabulary.npz")
    loaded = Vocabulary.load(tmp_path / "new" / "vocabulary.npz")
    np.testing.assert_array_equal(loaded.embeddings, vocabulary.embeddings)
    assert (loaded.names, loaded.templates) == (vocabulary.names, vocabulary.templates)
    assert loaded.encoder["parameters_sha256"] == vocabulary.encoder["parameters_sha256"]
    require_matching(loaded, describe_encoder(PRESETS["tiny"], TEXT))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["vocabulary.npz"]


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    """The archive has a checksum of each array; a bit of a name's header may say "encrypted"."""
    path, vocabulary = tmp_path / "vocabulary.npz", make_vocabulary({"architecture": None}, dim=4)
    vocabulary.save(path)
    content = path.read_bytes()
    found = 0
    for bit in range(0, 8 * len(content), 37):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            loaded = Vocabulary.load(path)
        except CheckpointMismatch:
            found += 1
            continue
        np.testing.assert_array_equal(loaded.embeddings, vocabulary.embeddings)
        for field in ("names", "templates", "encoder"):
            assert getattr(loaded, field) == getattr(vocabulary, field)
    assert found > 150


def test_a_vocabulary_may_have_no_templates(tmp_path):
    dataclasses.replace(make_vocabulary(), templates=()).save(tmp_path / "a.npz")
    assert Vocabulary.load(tmp_path / "a.npz").templates == ()


def test_names_with_the_same_embedding_are_named(tmp_path, caplog):
    rows = np.array([[1, 2], [3, 4], [1, 2]], np.float32)
    Vocabulary(("a", "b", "c"), rows, (), {}).save(tmp_path / "a.npz")
    Vocabulary.load(tmp_path / "a.npz")
    assert "a.npz: 1 names have the embedding of another name" in caplog.text
    assert "'a' and 'c'" in caplog.text
    caplog.clear()
    Vocabulary(("a", "b"), rows[:2], (), {}).save(tmp_path / "a.npz")
    Vocabulary.load(tmp_path / "a.npz")
    assert not caplog.text


@pytest.mark.parametrize(
    ("names", "embeddings", "message"),
    [
        (("a",), np.ones((2, 3)), r"\[1, D\].*\(2, 3\)"),
        (("a", "a"), np.ones((2, 3)), "name 1 is 'a'"),
        (("a", ""), np.ones((2, 3)), "name 1 is ''"),
        (("a", "b"), np.array([[1.0], [np.nan]]), r"'b' \(row 1\) is not finite"),
    ],
)
def test_inconsistent_vocabularies_are_refused(names, embeddings, message):
    with pytest.raises(CheckpointMismatch, match=message):
        Vocabulary(names, embeddings, (), {})


def test_files_without_a_vocabulary_are_refused(tmp_path):
    path = tmp_path / "vocabulary.npz"
    with pytest.raises(CheckpointMismatch, match="found no file"):
        Vocabulary.load(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointMismatch, match=r"vocabulary\.npz.*does not open"):
        Vocabulary.load(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointMismatch, match=r"vocabulary\.npz.*does not open"):
        Vocabulary.load(path)
    np.savez(path, names=np.array(["a"]))
    with pytest.raises(CheckpointMismatch, match="embeddings"):
        Vocabulary.load(path)


def test_objects_in_a_file_are_refused_and_not_unpickled(tmp_path):
    path = tmp_path / "vocabulary.npz"
    arrays = {"embeddings": np.ones((1, 2)), "templates": np.array([]), "encoder": np.array("{}")}
    np.savez(path, names=np.array([{"a": 1}], dtype=object), **arrays)
    with pytest.raises(CheckpointMismatch, match="pickle"):
        Vocabulary.load(path)


def test_the_hash_of_a_text_tower_depends_only_on_its_values_and_names():
    reference = text_tower_hash(TEXT)
    reordered = {"text": dict(reversed(TEXT["text"].items())), "visual": {"other": np.ones(3)}}
    assert text_tower_hash(reordered) == reference
    changed = {"text": {**TEXT["text"], "projection": np.full((2, 3), 2, np.float32)}}
    assert text_tower_hash(changed) != reference
    reshaped = {"text": {**TEXT["text"], "projection": np.ones((3, 2), np.float32)}}
    assert text_tower_hash(reshaped) != reference


def test_a_vocabulary_of_another_text_tower_is_refused_with_both_hashes():
    other = {"text": {**TEXT["text"], "projection": np.zeros((2, 3), np.float32)}}
    encoder = describe_encoder(PRESETS["RN50x4"], other)
    with pytest.raises(CheckpointMismatch) as error:
        require_matching(make_vocabulary(), encoder)
    message = str(error.value)
    assert "tiny (text width 128, D 64)" in message and "RN50x4 (text width 640" in message
    assert encoder["parameters_sha256"][:12] in message


def test_a_vocabulary_of_the_flat_architecture_matches_its_model_and_is_printed():
    """Files older than card format 2 have another architecture but the same text tower hash."""
    flat = {
        "image_resolution": 224, "vision_layers": [1, 1, 1, 1], "vision_width": 16,
        "vision_patch_size": None, "vision_heads": 8, "embed_dim": 64, "vocab_size": 49408,
        "context_length": 77, "text_width": 128, "text_heads": 2, "text_layers": 2,
    }  # fmt: skip
    old = make_vocabulary({"architecture": flat, "parameters_sha256": text_tower_hash(TEXT)})
    require_matching(old, describe_encoder(PRESETS["tiny"], TEXT))
    other = {"text": {**TEXT["text"], "projection": np.zeros((2, 3), np.float32)}}
    with pytest.raises(CheckpointMismatch, match=r"made by tiny \(text width 128, D 64\)"):
        require_matching(old, describe_encoder(PRESETS["tiny"], other))


def test_only_the_width_of_an_imported_vocabulary_is_compared():
    imported = {"architecture": None, "parameters_sha256": None}
    encoder = describe_encoder(PRESETS["tiny"], TEXT)
    require_matching(make_vocabulary(imported), encoder)
    with pytest.raises(CheckpointMismatch, match="63-dimensional.*unknown text tower"):
        require_matching(make_vocabulary(imported, dim=63), encoder)


GOOD = {
    "names": np.array(["cat", "dog"]),
    "embeddings": np.eye(2, dtype=np.float32),
    "templates": np.array(["a {}"]),
    "encoder": np.array('{"architecture": null, "parameters_sha256": null}'),
}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("names", np.array([1, 2]), "names: expected 1 dimensions of type U"),
        ("names", np.array([["cat"], ["dog"]]), "names: expected 1 dimensions"),
        ("names", np.array(["cat", "cat"]), "name 1 is 'cat'"),
        ("embeddings", np.array([["1"], ["2"]]), "embeddings: expected 2 dimensions of type f"),
        ("embeddings", np.eye(3), "expected one embedding a name"),
        ("templates", np.array([1.5]), "templates: expected 1 dimensions of type U"),
        ("encoder", np.array("{"), "encoder: expected JSON"),
        ("encoder", np.array("[" * 100_000), "encoder: expected JSON"),
        ("encoder", np.array("[]"), "encoder: expected architecture"),
        ("encoder", np.array('{"architecture": 5}'), "encoder: expected architecture"),
        ("encoder", np.array('{"parameters_sha256": 5}'), "encoder: expected architecture"),
        ("encoder", np.array(3), "encoder: expected 0 dimensions of type U"),
    ],
)
def test_an_array_of_another_type_is_a_one_line_error(tmp_path, name, array, message):
    path = tmp_path / "vocabulary.npz"
    np.savez(path, **GOOD)
    assert Vocabulary.load(path).names == ("cat", "dog")
    np.savez(path, **GOOD | {name: array})
    with pytest.raises(CheckpointMismatch, match=rf"vocabulary\.npz: .*{message}") as error:
        Vocabulary.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_bare_array_in_place_of_an_archive_is_refused(tmp_path):
    path = tmp_path / "vocabulary.npz"
    with path.open("wb") as file:
        np.save(file, GOOD["embeddings"])
    with pytest.raises(CheckpointMismatch, match=r"vocabulary\.npz: the zip archive does not open"):
        Vocabulary.load(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [("(1000000000000, 2)", "8,000,000,000,128 bytes are stated"), ("(((((", "")],
)
def test_the_size_of_an_array_is_compared_with_its_entry(tmp_path, shape, message):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117)
    entry = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(16)
    path = tmp_path / "vocabulary.npz"
    np.savez(path, **{name: array for name, array in GOOD.items() if name != "embeddings"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("embeddings.npy", entry)
    with pytest.raises(CheckpointMismatch, match=rf"'embeddings' does not open.*{message}"):
        Vocabulary.load(path)


def test_a_vocabulary_that_inflates_is_refused_before(tmp_path):
    path = tmp_path / "vocabulary.npz"
    np.savez_compressed(path, **GOOD | {"embeddings": np.zeros((2, 2**22), np.float32)})
    assert path.stat().st_size < 10**5
    with pytest.raises(CheckpointMismatch, match="unpacks to at most"):
        Vocabulary.load(path)
    np.savez_compressed(path, **GOOD)
    assert Vocabulary.load(path).names == ("cat", "dog")
