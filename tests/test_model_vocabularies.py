"""Vocabularies of any size need few programs and change no number; threads share a model."""

import concurrent.futures

import numpy as np
import pytest

import regionclip_jax
from regionclip_jax import model as public
from regionclip_jax import predictor
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.data.loading.buckets import padded_rows

MOST = 1203  # LVIS
BOXES = np.array([[5, 5, 40, 50], [0, 0, 60, 60], [20, 5, 30, 55]], np.float32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory, nano_variables, nano_configs, nano_localizer):
    directory = tmp_path_factory.mktemp("models") / "detector"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    save_localizer(directory, variables, card)
    return regionclip_jax.load(directory, short_side=64, max_long_side=64)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def words(detector):
    """``words(n)``: a vocabulary of n names, whose embeddings no text tower computed."""
    embeddings = np.random.default_rng(1).standard_normal((MOST, 32)).astype(np.float32)

    def make(count: int) -> Vocabulary:
        names = tuple(f"name {k}" for k in range(count))
        return Vocabulary(names, embeddings[:count], ("{}",), detector._encoder)

    return make


def unpadded(rows, fewest: int):
    return rows, np.ones(len(rows), bool)


def test_padding_changes_no_probability(detector, words, monkeypatch):
    """Sums of another length are rounded in another order: measured 3e-7, relative."""
    regions = np.random.default_rng(2).standard_normal((7, 32)).astype(np.float32)
    for count in (1, 5, 16, 17, MOST):
        padded = detector.classify(regions, words(count))
        with monkeypatch.context() as patch:
            patch.setattr(public, "padded_rows", unpadded)
            exact = detector.classify(regions, words(count))
        assert padded.shape == exact.shape == (7, count)
        np.testing.assert_allclose(padded, exact, rtol=1e-6)


def test_vocabularies_of_1_to_1203_words_need_8_programs(detector, image, words, monkeypatch):
    """The shape of the classes decides which program runs; each number of words has one of 8.

    Two of these programs are compiled here, and their detections are those of the one that is
    compiled for exactly this number of words.
    """
    shapes = {padded_rows(words(n).embeddings, 16)[0].shape for n in range(1, MOST + 1)}
    assert sorted(rows for rows, _ in shapes) == [16 * 2**k for k in range(8)]
    programs = {}
    make = detector._predictor._program

    def noted(*key):
        programs[key] = make(*key)
        return programs[key]

    monkeypatch.setattr(detector._predictor, "_program", noted)
    padded = {n: detector.detect(image, words(n), boxes=BOXES) for n in (1, 3, 16, 20)}
    (program,) = programs.values()
    assert program._cache_size() == 2
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "padded_rows", unpadded)
        exact = detector.detect(image, words(20), boxes=BOXES)
    assert program._cache_size() == 3
    found = padded[20]
    assert len(found) > 20 and found.names == exact.names
    np.testing.assert_array_equal(found.boxes, exact.boxes)
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-6)
    assert set(padded[3].names) <= {f"name {k}" for k in range(3)}


def test_threads_share_a_model(detector, image, words):
    """Eight threads detect, embed, encode and draw at once; each gets what it gets alone."""

    def work(number: int):
        own = np.roll(image, number, axis=0)
        found = detector.detect(own, words(1 + 3 * (number % 5)), boxes=BOXES)
        text = detector.encode_text(["cat", f"dog number {number % 3}"], templates="plain")
        regions = detector.encode_regions(own, BOXES)
        drawn = np.asarray(found.draw(own))
        return found.boxes, found.scores, text, regions, drawn

    alone = [work(number) for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(24)))
    for number, results in enumerate(together):
        expected = alone[number] if number < 8 else work(number)
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


def test_threads_that_embed_the_same_names_compute_them_once(detector):
    before = detector._embed_names.cache_info().misses
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        every = list(pool.map(lambda _: detector.vocabulary(["yak", "emu"]), range(16)))
    assert len({id(one) for one in every}) == 1
    assert detector._embed_names.cache_info().misses == before + 1
