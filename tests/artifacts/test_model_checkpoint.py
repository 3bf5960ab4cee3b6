import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from regionclip_jax.artifacts import digests, model_checkpoint
from regionclip_jax.artifacts.detector_heads import HeadsCard, HeadsConfig, save_heads
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model, save_model
from regionclip_jax.files import locked_folder
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing

RESNET = CLIPConfig(
    image=ResNetConfig(layers=(1, 1, 1, 1), width=2, heads=1),
    text=TextConfig(vocab_size=10, context_length=5, width=16, heads=1, layers=1),
    preprocessing=Preprocessing(64),
    embed_dim=8,
)
VIT = dataclasses.replace(
    RESNET, image=ViTConfig(patch_size=32, layers=1, width=16, heads=1), embed_dim=4
)


def random_variables(config: CLIPConfig) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        model_checkpoint.abstract_variables(config),
    )


def as_an_older_version(directory):
    """Remove the digests, which versions up to 0.2.0 did not write."""
    (directory / "digests.json").unlink()


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path, config):
    variables, card = random_variables(config), ModelCard(config, {"run": "test"})
    save_model(tmp_path / "model", jax.tree.map(jnp.asarray, variables), card)
    loaded, loaded_card = load_model(tmp_path / "model")
    assert loaded_card == card and load_card(tmp_path / "model") == card
    assert set(loaded) == {"params", "batch_stats"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_half_precision_is_stored_as_fp32(tmp_path):
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_variables(VIT))
    save_model(tmp_path, variables, ModelCard(VIT, {}))
    loaded, _ = load_model(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.float32, variables))


def test_saving_replaces_the_model_and_keeps_other_files(tmp_path):
    save_model(tmp_path, random_variables(RESNET), ModelCard(RESNET, {}))
    (tmp_path / "vocabulary.npz").write_bytes(b"kept")
    save_model(tmp_path, random_variables(VIT), ModelCard(VIT, {}))
    assert load_model(tmp_path)[1].architecture == VIT
    assert (tmp_path / "vocabulary.npz").read_bytes() == b"kept"


def test_a_directory_that_another_process_writes_is_refused(tmp_path):
    save_model(tmp_path, random_variables(VIT), ModelCard(VIT, {"run": "first"}))
    with locked_folder(tmp_path), pytest.raises(FileExistsError, match="is being written by"):
        save_model(tmp_path, random_variables(VIT), ModelCard(VIT, {"run": "second"}))
    assert load_model(tmp_path)[1].source == {"run": "first"}


def test_an_interrupted_write_is_not_loaded_as_a_model(tmp_path, monkeypatch):
    save_model(tmp_path, random_variables(RESNET), ModelCard(RESNET, {}))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_checkpoint, "save_variables", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, random_variables(RESNET), ModelCard(RESNET, {}))
    with pytest.raises(CheckpointMismatch, match="never finished"):
        load_model(tmp_path)


def test_a_card_without_arrays_is_refused(tmp_path):
    save_model(tmp_path, random_variables(VIT), ModelCard(VIT, {}))
    shutil.rmtree(tmp_path / "params")
    with pytest.raises(
        CheckpointMismatch, match=r"params/\S+: missing \(and \d+ more files\); copy"
    ):
        load_model(tmp_path)
    as_an_older_version(tmp_path)
    with pytest.raises(CheckpointMismatch, match="params: expected an Orbax checkpoint"):
        load_model(tmp_path)


@pytest.mark.parametrize("make", ["nothing", "empty", "other"])
def test_a_directory_without_a_model_is_refused_with_a_remedy(tmp_path, make):
    directory = tmp_path / "model"
    if make != "nothing":
        directory.mkdir()
    if make == "other":
        (directory / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointMismatch, match=r"convert_checkpoint\.py"):
        load_model(directory)


def test_arrays_that_do_not_match_the_card_are_named(tmp_path):
    variables = random_variables(RESNET)
    variables["params"]["text"]["projection"] = np.zeros((3, 8), np.float32)
    del variables["batch_stats"]["visual"]["stem"]["norm1"]["mean"]
    variables["params"]["extra"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointMismatch) as error:
        save_model(tmp_path / "model", variables, ModelCard(RESNET, {}))
    message = str(error.value)
    assert "params/text/projection: expected shape (16, 8), found (3, 8)" in message
    assert "batch_stats/visual/stem/norm1/mean: missing, expected (1,)" in message
    assert "params/extra: not part of the model" in message
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("path", "part", "value"),
    [
        ("params/visual/attention_pool/c_proj/kernel", "image tower", np.nan),
        ("batch_stats/visual/stem/norm1/var", "image tower", np.inf),
        ("params/text/projection", "text tower", -np.inf),
        ("params/logit_scale", "temperature of the model", np.nan),
    ],
)
def test_a_number_that_is_not_finite_is_neither_written_nor_read(tmp_path, path, part, value):
    save_model(tmp_path / "model", random_variables(RESNET), ModelCard(RESNET, {}))
    variables = random_variables(RESNET)
    leaves = model_checkpoint.flatten(variables)
    leaves[path] = np.array(leaves[path])
    leaves[path].flat[0] = value
    variables = model_checkpoint.unflatten(leaves)
    message = rf"{path} \({part}\): 1 of [\d,]+ numbers are not finite\n.*download the file again"
    with pytest.raises(CheckpointMismatch, match=message):
        save_model(tmp_path / "new", variables, ModelCard(RESNET, {}))
    assert not (tmp_path / "new").exists()
    model_checkpoint.save_variables(tmp_path / "model" / "params", variables)
    as_an_older_version(tmp_path / "model")
    with pytest.raises(CheckpointMismatch, match=message):
        load_model(tmp_path / "model")


def test_infinities_of_a_localizer_and_of_heads_name_their_part(tmp_path, nano_localizer):
    card, variables = nano_localizer
    variables = jax.tree.map(np.array, variables)
    variables["params"]["head"]["objectness"]["kernel"].flat[0] = np.inf
    with pytest.raises(CheckpointMismatch, match=r"objectness/kernel \(localizer, .*not finite"):
        save_localizer(tmp_path, variables, card)
    deltas = {"kernel": np.zeros((32, 4), np.float32), "bias": np.full(4, np.nan, np.float32)}
    with pytest.raises(CheckpointMismatch, match=r"deltas/bias \(box head\): 4 of 4 numbers"):
        heads = HeadsCard(HeadsConfig(32, None), {})
        variables = {"params": {"box_head": {"deltas": deltas}}, "batch_stats": {}}
        save_heads(tmp_path, variables, heads)
    assert not list(tmp_path.iterdir())


def test_numbers_that_changed_since_they_were_written_are_refused(tmp_path):
    save_model(tmp_path, random_variables(VIT), ModelCard(VIT, {}))
    variables, card = load_model(tmp_path)
    assert card.parameters_sha256 == model_checkpoint.variables_hash(variables)
    variables["params"]["logit_scale"] += 1e-3
    model_checkpoint.save_variables(tmp_path / "params", variables)
    as_an_older_version(tmp_path)
    with pytest.raises(CheckpointMismatch, match="have the SHA-256 .* when they were written"):
        load_model(tmp_path)
    # Cards of older versions have no checksum.
    content = json.loads((tmp_path / "card.json").read_text())
    del content["parameters_sha256"]
    (tmp_path / "card.json").write_text(json.dumps(content))
    assert load_card(tmp_path).parameters_sha256 is None
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path)[0], variables)


def test_a_card_of_another_architecture_is_refused_on_loading(tmp_path):
    save_model(tmp_path, random_variables(RESNET), ModelCard(RESNET, {}))
    wider = ModelCard(dataclasses.replace(RESNET, embed_dim=9), {})
    (tmp_path / "card.json").write_text(wider.to_json())
    with pytest.raises(CheckpointMismatch, match=r"card\.json: .* after an edit by hand: delete"):
        load_model(tmp_path)
    as_an_older_version(tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"text/projection: expected shape \(16, 9\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"a": NaN}',
        b'{"tree_metadata": 5}', b'{"tree_metadata": {"a": 5}}', b'{"tree_metadata": {"(": {}}}',
    ],
)  # fmt: skip
def test_other_metadata_of_orbax_is_a_one_line_error(tmp_path, saved_vit, content):
    shutil.copytree(saved_vit, tmp_path / "model")
    # Made by the same person as the other files.
    (tmp_path / "model" / digests.FILE_NAME).unlink()
    (tmp_path / "model" / "params" / "_METADATA").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="params: expected an Orbax checkpoint") as error:
        load_model(tmp_path / "model")
    assert len(str(error.value)) < 600


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(directory, random_variables(VIT), ModelCard(VIT, {}))
    return directory


def test_arrays_that_state_more_than_their_files_are_not_read(tmp_path, monkeypatch):
    """Compressed, 32 MiB of zeros take less than a thousandth."""
    path = tmp_path / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"a": np.zeros(2**23, np.float32)})
    monkeypatch.setattr(ocp.Checkpointer, "restore", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(CheckpointMismatch, match=r"at most 1[0-9,]+ bytes in files of .* 33,554,4"):
        model_checkpoint.load_variables(path)


def test_an_architecture_that_no_model_has_names_the_card():
    # Each version of flax refuses other sizes, and all refuse a text tower for images.
    other = dataclasses.replace(RESNET, image=RESNET.text)
    with pytest.raises(CheckpointMismatch, match=r"card\.json: no model has the architecture"):
        model_checkpoint.traced(model_checkpoint.abstract_variables, other, "model/card.json")


@pytest.mark.parametrize(
    "content",
    [
        "", "[" * 100_000, "[]", "{}", '{"format": 1}', '{"format": 1, "files": 5}',
        '{"format": 1, "files": {"a": 5}}', '{"format": 1, "files": {"a": {"bytes": NaN}}}',
        '{"format": 1, "files": {"../a": {"bytes": 1, "sha256": "00"}}}',
    ],
)  # fmt: skip
def test_other_digests_are_a_one_line_error(tmp_path, content):
    (tmp_path / "card.json").write_text(ModelCard(VIT, {}).to_json())
    (tmp_path / digests.FILE_NAME).write_text(content)
    with pytest.raises(CheckpointMismatch, match="digests of a format from 1 to 2") as error:
        load_card(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
