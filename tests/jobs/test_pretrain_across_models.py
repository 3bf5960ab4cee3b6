"""Pretraining with a teacher and a student of different families, widths and tokenizers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regionclip_jax
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder
from regionclip_jax.assembly.models import tokenizer_source
from regionclip_jax.assembly.sources import build_image_text_source
from regionclip_jax.assembly.training import EXAMPLES
from regionclip_jax.jobs import pretrain
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import ConceptSettings, ConfigError, PretrainSettings
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.steps.pretrain_step import embed_with_student

NAMES = ("cat", "dog", "tree", "ring")
SIGMOIDS = {"regions.region_activation": "sigmoid", "regions.image_text_activation": "sigmoid"}


@pytest.fixture(scope="module")
def settings_of(data, regions, optimizer, run_section, model_section, model_directory):
    """``settings_of(teacher, student)``: settings of two nano presets."""
    optimizer = dataclasses.replace(optimizer, learning_rate=0.01, frozen_patterns=("^text/",))

    def settings(teacher: str, student: str) -> PretrainSettings:
        return PretrainSettings(
            job="pretrain",
            student=model_section(student, model_directory(student)),
            teacher=model_section(teacher, model_directory(teacher)),
            data=data,
            concepts=ConceptSettings(names_file="", templates="plain"),
            regions=regions,
            optimizer=optimizer,
            run=run_section,
        )

    return settings


def check_pools(workdir, teacher, student):
    for name, preset in (("teacher_vocabulary", teacher), ("vocabulary", student)):
        pool = Vocabulary.load(workdir / f"{name}.npz")
        assert pool.names == NAMES and pool.embeddings.shape[1] == PRESETS[preset].embed_dim
        # Names have embeddings of their own.
        assert len({row.tobytes() for row in pool.embeddings}) == len(NAMES)


def test_a_step_of_two_families_traces_with_sigmoids(settings_of, changed):
    """The slow tests below run such steps."""
    settings = changed(
        settings_of("nano_siglip", "nano_eva"), SIGMOIDS | {"regions.micro_batches": 2}
    )
    training = pretrain.build(settings, pretrain.Assumed(num_names=5))
    state = training.abstract_state()
    assert {"logit_scale", "logit_bias"} < state.params.keys()
    step = training.make_step(make_mesh(devices=jax.devices()[:1]))
    after, metrics = jax.eval_shape(
        step, state, training.abstract_frozen(), training.abstract_batch()
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {name for name in metrics if name.startswith("loss_")} == {
        "loss_image_text",
        "loss_distillation",
        "loss_contrastive",
    }


def test_pools_of_other_names_are_refused_naming_both(settings_of, monkeypatch, tmp_path):
    def pool(path, model, variables, names, templates, tokenizer):
        names = names if path.name == "vocabulary.npz" else ("cat", "cow", *names[2:])
        rows = np.ones((len(names), model.config.embed_dim), np.float32)
        return Vocabulary(
            tuple(names), rows, ("{}",), describe_encoder(model.config, variables["params"])
        )

    monkeypatch.setattr(pretrain.concept_pool, "cached_vocabulary", pool)
    training = pretrain.build(settings_of("nano_vit", "nano_siglip"), concepts=NAMES)
    with pytest.raises(CheckpointMismatch) as caught:
        training.open().frozen(tmp_path)
    message = str(caught.value)
    assert "student and teacher hold 4 and 4 names, in row 1 'dog' and 'cow'" in message
    assert "student: nano_siglip" in message and "teacher: nano_vit" in message


@pytest.mark.parametrize("length", [16, 77])
def test_captions_of_another_length_than_siglips_are_refused(settings_of, changed, length):
    wrong = changed(settings_of("nano_eva", "nano_siglip"), {"data.context_length": length})
    message = f"data.context_length: {length} tokens of a caption, expected exactly the 24"
    with pytest.raises(ConfigError, match=message):
        pretrain.build(wrong, concepts=NAMES)


def test_a_frozen_scale_is_refused_if_the_student_has_no_bias(settings_of, changed):
    patterns = ("^text/", "^logit_scale")
    how = SIGMOIDS | {"optimizer.frozen_patterns": patterns}
    fresh = changed(settings_of("nano_siglip", "nano_vit"), how)
    with pytest.raises(ConfigError, match=r"frozen_patterns: \['\^logit_scale'\] freeze scale 10"):
        pretrain.build(fresh, concepts=NAMES).open()
    # A SigLIP has learned its own.
    learned = changed(settings_of("nano_vit", "nano_siglip"), how)
    assert pretrain.build(learned, concepts=NAMES).open()


@pytest.mark.slow
def test_a_siglip_learns_with_sigmoids_from_a_clip(settings_of, changed, tmp_path, nano_weights):
    settings = changed(settings_of("nano_vit", "nano_siglip"), SIGMOIDS)
    directory = pretrain.run(settings, tmp_path, NAMES)
    check_pools(tmp_path, "nano_vit", "nano_siglip")
    variables, card = load_model(directory)
    assert card.architecture == PRESETS["nano_siglip"]
    start = nano_weights("nano_siglip", 0)["params"]
    for name in ("logit_scale", "logit_bias"):
        assert variables["params"][name] != start[name]
    model = regionclip_jax.load(directory, short_side=64, max_long_side=64)
    detection = model.scores.detection
    assert detection.score_activation == "sigmoid"
    assert detection.score_bias == pytest.approx(float(variables["params"]["logit_bias"]))
    assert detection.temperature == pytest.approx(np.exp(-variables["params"]["logit_scale"]))
    # The directory has the vocabulary of its tokenizer and the pool.
    probabilities = model.classify(np.ones((1, 24), np.float32))
    assert probabilities.shape == (1, 4) and model.vocabulary().names == NAMES


@pytest.mark.slow
def test_a_student_without_a_bias_gets_siglips_start(settings_of, changed, tmp_path):
    student = "nano_eva"
    settings = changed(settings_of("nano_siglip", student), SIGMOIDS | {"run.num_steps": 1})
    directory = pretrain.run(settings, tmp_path / "first", NAMES)
    check_pools(tmp_path / "first", "nano_siglip", student)
    variables, card = load_model(directory)
    assert card.architecture == dataclasses.replace(PRESETS[student], logit_bias=True)
    params = variables["params"]
    assert 0 < abs(params["logit_bias"] + 10) < 0.5
    assert 0 < abs(params["logit_scale"] - np.log(10)) < 0.5
    # Another sigmoid goes on from there; a softmax leaves the bias out.
    again = changed(settings, {"student.init_from": str(directory)})
    start = pretrain.build(again, concepts=NAMES).open().variables()
    assert start["params"]["logit_bias"] == params["logit_bias"]
    softmax = changed(again, dict.fromkeys(SIGMOIDS, "softmax"))
    start = pretrain.build(softmax, concepts=NAMES).open().variables()
    assert "logit_bias" not in start["params"]
    assert start["params"]["logit_scale"] == params["logit_scale"]


@pytest.fixture(scope="module")
def step_of(settings_of, tmp_path_factory):
    """``step_of(teacher, student)``: settings, the first batch, and metrics and pools of a step."""

    @functools.cache
    def make(teacher, student):
        workdir = tmp_path_factory.mktemp("step")
        settings = settings_of(teacher, student)
        training = pretrain.build(settings, concepts=NAMES)
        materials = training.open()
        batch, variables = next(materials.batches(0)), materials.variables()
        step = jax.jit(training.make_step(make_mesh(devices=jax.devices()[:1])))
        frozen = materials.frozen(workdir)
        _, metrics = step(training.initial_state(variables), frozen, batch)
        return settings, batch, variables, jax.tree.map(np.asarray, metrics), frozen

    return make


PAIRS = pytest.mark.parametrize(
    ("teacher", "student"), [("nano_siglip", "nano_vit"), ("nano_eva", "nano_siglip")]
)


def public_regions(directory, images, boxes):
    """Return the embeddings of boxes by the public API, with the directory's own pixels."""
    model = regionclip_jax.load(directory, short_side=64, max_long_side=64)
    pairs = zip(np.asarray(images), boxes, strict=True)
    return np.stack([model.encode_regions(*pair) for pair in pairs])


@pytest.mark.slow
@PAIRS
def test_labels_are_those_of_the_teachers_directory(step_of, teacher, student):
    settings, batch, _, metrics, frozen = step_of(teacher, student)
    assert np.isfinite(metrics["loss_distillation"]) and metrics["loss_distillation"] > 0
    labelled = metrics[EXAMPLES]
    found = public_regions(settings.teacher.init_from, batch.images, labelled.boxes)
    pool = frozen.teacher_concepts / np.linalg.norm(frozen.teacher_concepts, axis=1)[:, None]
    cosines = found / np.linalg.norm(found, axis=-1, keepdims=True) @ pool.T
    chances = np.exp(cosines / settings.regions.teacher_temperature)
    chances /= chances.sum(-1, keepdims=True)
    np.testing.assert_array_equal(chances.argmax(-1), labelled.concepts)
    np.testing.assert_allclose(chances.max(-1), labelled.confidence, rtol=1e-3)


@pytest.mark.slow
@PAIRS
def test_the_student_sees_its_own_pixels_and_tokens(step_of, relative_error, teacher, student):
    settings, batch, variables, metrics, _ = step_of(teacher, student)
    boxes = metrics[EXAMPLES].boxes
    embed = jax.jit(embed_with_student, static_argnums=(0, 4))
    batch = jax.tree.map(jnp.asarray, batch)
    actual = embed(CLIP(PRESETS[student]), variables, batch, boxes, settings.regions)
    expected = public_regions(settings.student.init_from, batch.images, boxes)
    assert relative_error(actual.regions, expected) < 1e-4

    source = build_image_text_source(settings.data)
    captions = [text for i in range(len(source)) for text in source[i].captions]
    tokens = tokenizer_source(settings.student).load()(captions, settings.data.context_length)
    known = {row.tobytes() for row in np.asarray(tokens, np.int32)}
    assert {np.asarray(row, np.int32).tobytes() for row in batch.tokens} <= known
