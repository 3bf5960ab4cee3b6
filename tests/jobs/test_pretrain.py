import dataclasses

import numpy as np
import pytest

import regionclip_jax
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary, text_tower_hash
from regionclip_jax.jobs import pretrain
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import (
    ConceptSettings,
    ConfigError,
    PretrainSettings,
    ProposalSettings,
)
from regionclip_jax.sharding.mesh import make_mesh

NAMES = ("cat", "dog", "tree", "ring")


@pytest.fixture(scope="module")
def config(
    data, regions, optimizer, run_section, model_section, model_directory
) -> PretrainSettings:
    """Settings with a ResNet teacher and a ViT student of another width."""
    return PretrainSettings(
        job="pretrain",
        matmul_precision="default",
        student=model_section("nano_vit", model_directory("nano_vit")),
        teacher=model_section("nano_resnet", model_directory("nano_resnet")),
        data=data,
        concepts=ConceptSettings(names_file="", templates="plain"),
        regions=dataclasses.replace(
            regions,
            proposals=dataclasses.replace(
                regions.proposals, nms_threshold=0.5, voting_threshold=0.4
            ),
        ),
        optimizer=optimizer,
        run=run_section,
    )


@pytest.fixture(scope="module")
def pretrained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pretrain.run(config, workdir, NAMES)


def test_a_student_learns_from_a_teacher_of_another_architecture(pretrained, nano_weights):
    workdir, model = pretrained
    variables, card = load_model(model)
    assert card.architecture == PRESETS["nano_vit"]
    assert card.source == {"run": "pretrain", "step": 2}
    start, end = flatten(nano_weights("nano_vit", 0)), flatten(variables)
    for path in start:
        frozen = path.startswith("params/text/") or path == "params/logit_scale"
        assert np.array_equal(start[path], end[path]) == frozen, path


def test_tensorboard_has_the_learning_rate_and_the_labelled_regions(pretrained, read_events):
    events = read_events(pretrained[0])
    assert events["learning_rate"] == [(1, pytest.approx(0.05)), (2, pytest.approx(0.05))]
    # At every checkpoint, unless the images of the one before were not written yet.
    for row in range(4):
        step, image = events[f"pseudo_labels/{row}"][0]
        assert step in (1, 2) and image.startswith(b"\x89PNG")


def test_two_text_towers_have_two_pools_of_the_same_names(pretrained, nano_weights):
    workdir, _ = pretrained
    pools = {
        "nano_vit": Vocabulary.load(workdir / "vocabulary.npz"),
        "nano_resnet": Vocabulary.load(workdir / "teacher_vocabulary.npz"),
    }
    for preset, pool in pools.items():
        assert pool.names == NAMES and pool.embeddings.shape == (4, PRESETS[preset].embed_dim)
        expected = text_tower_hash(nano_weights(preset, 0)["params"])
        assert pool.encoder["parameters_sha256"] == expected


def test_a_student_is_a_complete_model_directory(pretrained):
    workdir, model = pretrained
    loaded = regionclip_jax.load(model)
    assert loaded.vocabulary().names == NAMES
    # The temperature of the training's regions, not the one that its weights learned before.
    assert loaded.temperature == 0.1 and loaded.scores.detection.objectness == "sigmoid"
    # Suppression and voting of the training's proposals, but as many as a detection needs.
    proposals = loaded.scores.proposals
    assert (proposals.nms_threshold, proposals.voting_threshold) == (0.5, 0.4)
    assert proposals.num_proposals == ProposalSettings().num_proposals


def refused(error, config, workdir, names=NAMES) -> str:
    with pytest.raises(error) as caught:
        pretrain.run(config, workdir, names)
    return str(caught.value)


def test_another_teacher_or_another_pool_at_resume_is_refused_naming_both(
    pretrained, config, changed, model_directory
):
    workdir, _ = pretrained
    pools = {path: path.read_bytes() for path in workdir.glob("*.npz")}
    longer = changed(config, {"run.num_steps": 3})
    other = model_directory("nano_resnet", seed=1)
    message = refused(CheckpointMismatch, changed(longer, {"teacher.init_from": other}), workdir)
    assert "contents.teacher: there '" in message and "--workdir" in message
    message = refused(CheckpointMismatch, longer, workdir, ("cat", "cow", "tree", "ring"))
    assert "contents.concepts.1: there 'dog', here 'cow'" in message
    other = model_directory("nano_vit", seed=1)
    message = refused(CheckpointMismatch, changed(longer, {"student.init_from": other}), workdir)
    assert "contents.student_text_tower: there '" in message
    assert pools == {path: path.read_bytes() for path in workdir.glob("*.npz")}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_of_another_architecture_are_refused_naming_both(
    config, changed, model_directory, tmp_path, role
):
    preset = {"student": "nano_vit", "teacher": "nano_resnet"}[role]
    (other,) = {"nano_vit", "nano_resnet"} - {preset}
    wrong = changed(config, {f"{role}.init_from": model_directory(other)})
    message = refused(CheckpointMismatch, wrong, tmp_path)
    assert f"holds {other}, the recipe wants preset '{preset}'" in message
    assert not list(tmp_path.iterdir())


def test_a_trained_text_tower_is_refused_as_its_pool_is_fixed(
    config, changed, tmp_path, quick_pools
):
    trains_text = changed(config, {"optimizer.frozen_patterns": ("^logit_scale",)})
    message = refused(ConfigError, trains_text, tmp_path)
    assert "optimizer.frozen_patterns: ['^logit_scale']" in message and "add '^text/'" in message


def test_a_recipe_without_names_is_refused_with_the_key_of_the_file(config, tmp_path):
    message = refused(ConfigError, config, tmp_path, names=())
    assert "concepts.names_file" in message


@pytest.fixture
def quick_pools(monkeypatch):
    """Arguments of the requested pools by file name, where the pools are arrays of ones."""
    requested = {}

    def pool(path, model, variables, names, templates, tokenizer):
        assert tokenizer == ("clip", None)
        requested[path.name] = (model.config, tuple(names), templates)
        encoder = {"parameters_sha256": text_tower_hash(variables["params"])}
        rows = np.ones((len(names), model.config.embed_dim), np.float32)
        return Vocabulary(tuple(names), rows, ("{}",), encoder)

    monkeypatch.setattr(pretrain.concept_pool, "cached_vocabulary", pool)
    return requested


def test_equal_text_towers_share_one_pool(
    config, model_section, model_directory, tmp_path, quick_pools, nano_weights
):
    same = model_section("nano_vit", model_directory("nano_vit"))
    training = pretrain.build(dataclasses.replace(config, teacher=same), concepts=NAMES)
    frozen = training.open().frozen(tmp_path)
    assert set(quick_pools) == {"vocabulary.npz"}
    np.testing.assert_array_equal(frozen.teacher_concepts, frozen.student_concepts)
    start, teacher = flatten(nano_weights("nano_vit", 0)), flatten(frozen.teacher)
    assert teacher and all(np.array_equal(teacher[path], start[path]) for path in teacher)


def test_the_teacher_has_separate_weights_and_a_separate_pool_of_the_same_names(
    config, changed, tmp_path, quick_pools, nano_weights
):
    names = tmp_path / "names.txt"
    names.write_text("moon\nkey\n")
    config = changed(config, {"concepts.names_file": str(names)})
    frozen = pretrain.build(config, concepts=NAMES).open().frozen(tmp_path)
    expected = ("moon", "key"), "plain"
    assert quick_pools == {
        "vocabulary.npz": (PRESETS["nano_vit"], *expected),
        "teacher_vocabulary.npz": (PRESETS["nano_resnet"], *expected),
    }
    assert frozen.student_concepts.shape == (2, 12) and frozen.teacher_concepts.shape == (2, 20)
    start, teacher = flatten(nano_weights("nano_resnet", 0)), flatten(frozen.teacher)
    # The teacher encodes images only: the pool has the embeddings of its names.
    assert teacher.keys() == {path for path in start if not path.startswith("params/text/")}
    assert all(np.array_equal(teacher[path], start[path]) for path in teacher)


def test_the_seed_of_the_run_determines_weights_regions_and_sampling_order(
    config, changed, monkeypatch, tmp_path, quick_pools, nano_weights
):
    seen = {"weights": []}

    def weights(section, seed, *, logit_bias=False):
        assert not logit_bias
        seen["weights"].append(seed)
        return nano_weights(section.preset, 0)

    def steps(student, teacher, optimizer, settings, *, seed, localizer, image_text):
        assert localizer is None
        seen["regions"] = seed

    def stream(section, source, *, tokenizer, batch_size, seed, start_record):
        assert tokenizer == ("clip", None)
        seen["order"] = (seed, batch_size, start_record)

    monkeypatch.setattr(pretrain, "initial_variables", weights)
    monkeypatch.setattr(pretrain, "stream_batches", stream)
    monkeypatch.setattr(pretrain, "make_labelling_step", steps)
    training = pretrain.build(changed(config, {"run.seed": 41}), concepts=NAMES)
    training.make_step(make_mesh())
    training.open().batches(16)
    assert seen == {"weights": [41, 41], "regions": 41, "order": (41, 8, 16)}
