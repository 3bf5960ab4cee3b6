"""Public Python interface: results and errors of ``regionclip_jax.load``."""

import logging
import re

import jax
import numpy as np
import pytest
from PIL import Image

import regionclip_jax
from regionclip_jax.artifacts.detector_heads import HeadsCard, HeadsConfig, save_heads
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.assembly.devices import DeviceError
from regionclip_jax.data.loading.decoding import read_any_image
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.settings import (
    DetectionSettings,
    NmsSettings,
    ProposalSettings,
    ScoreSettings,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory, nano_variables, nano_configs):
    directory = tmp_path_factory.mktemp("models") / "nano"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    return regionclip_jax.load(directory, short_side=64, max_long_side=128)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


BOXES = np.array([[5, 5, 40, 50], [50, 10, 85, 30], [0, 0, 90, 60]], np.float32)


def test_embeddings_of_regions_keep_the_order_of_the_boxes(model, image):
    embeddings = model.encode_regions(image, BOXES)
    assert isinstance(embeddings, np.ndarray)
    assert embeddings.shape == (3, 32) and np.isfinite(embeddings).all()
    reversed_embeddings = model.encode_regions(image, BOXES[::-1])
    np.testing.assert_allclose(reversed_embeddings[::-1], embeddings, atol=1e-5)
    assert model.encode_regions(image, np.zeros((0, 4))).shape == (0, 32)


def test_an_image_may_be_an_array_a_pil_image_or_a_path(model, image, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(image).save(path)
    expected = model.encode_regions(image, BOXES)
    for same in (Image.fromarray(image), path, str(path)):
        np.testing.assert_array_equal(model.encode_regions(same, BOXES), expected)


def test_boxes_are_in_pixels_of_the_given_image(model, image):
    """An enlarged image with enlarged boxes shows the same objects."""
    large = np.asarray(Image.fromarray(image).resize((180, 120), Image.Resampling.BICUBIC))
    small, large = model.encode_regions(image, BOXES), model.encode_regions(large, 2 * BOXES)
    cosines = (small * large).sum(1) / np.linalg.norm(small, axis=1) / np.linalg.norm(large, axis=1)
    assert cosines.min() > 0.95


def test_the_same_shapes_are_compiled_once(model, image):
    model.encode_regions(image, BOXES)
    before = model._embed_regions._cache_size()
    model.encode_regions(image[:, :80], BOXES[:1])
    model.encode_regions(image, np.repeat(BOXES, 8, 0))
    assert model._embed_regions._cache_size() == before


@pytest.mark.parametrize(
    "mode", ["L", "P", "CMYK", "RGBA", "1", "LA", "I;16"], ids=lambda m: m.replace(";", "")
)
def test_every_image_mode_is_read(model, mode):
    image = Image.fromarray(np.full((40, 50), 20000, np.uint16)) if mode == "I;16" else None
    image = image or Image.new("RGB", (50, 40), (120, 60, 20)).convert(mode)
    embeddings = model.encode_regions(image, [[0, 0, 20, 20]])
    assert embeddings.shape == (1, 32) and np.isfinite(embeddings).all()


def test_an_image_file_is_rotated_by_its_exif_orientation(model, image, tmp_path):
    rotated = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate the image by 270 degrees
    rotated.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_any_image(tmp_path / "turned.png"), image)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 2)])
def test_an_image_of_any_aspect_ratio_fits_a_canvas(model, shape):
    image = np.zeros((*shape, 3), np.uint8)
    embeddings = model.encode_regions(image, [[0, 0, shape[1], shape[0]]])
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5]], r"expected \[R, 4\]"),
        ([1, 2, 3, 4], r"expected \[R, 4\]"),
        ([[0, 0, 5, 5], [8, 8, 5, 9]], "row 1 is .*x1 < x2"),
        ([[0, 0, np.nan, 5]], "row 0"),
        ([[0.1, 0.1, 0.8, 0.9]], "within 0 and 1"),
        ([[95, 5, 99, 9]], "row 0 is .* outside the image of 60 x 90"),
    ],
)
def test_invalid_boxes_are_refused(model, image, boxes, message):
    with pytest.raises(ValueError, match=message):
        model.encode_regions(image, boxes)
    with pytest.raises(ValueError, match=message):
        model.detect(image, ["cat"], boxes=boxes)
    with pytest.raises(ValueError, match=f"image 1: .*{message}"):
        model.detect([image, image], ["cat"], boxes=[BOXES, boxes])


def test_invalid_images_are_refused(model, image, tmp_path):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\].*float64 \[60, 90, 3\]"):
        model.encode_regions(image / 255, BOXES)
    with pytest.raises(ValueError, match=r"found uint8 \[3, 60, 90\]"):
        model.encode_regions(image.transpose(2, 0, 1), BOXES)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(RecordError, match="cut.jpg"):
        model.encode_regions(tmp_path / "cut.jpg", BOXES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found none"),
        (["cat", " "], "an empty name"),
        (["cat", "dog", "cat "], "'cat' more than once, at name 1 and name 3"),
        ("cat, dog", "expected a list of names, found the string"),
    ],
)
def test_invalid_names_are_refused(model, names, message):
    with pytest.raises(ValueError, match=message):
        model.encode_text(names)


def test_a_folder_without_a_model_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(CheckpointMismatch, match="convert_checkpoint.py"):
        regionclip_jax.load(tmp_path)
    # Devices of another platform are refused before anything is read.
    other = "tpu" if jax.default_backend() != "tpu" else "gpu"
    with pytest.raises(DeviceError, match=f"require_platform: expected {other}, found "):
        regionclip_jax.load(tmp_path, require_platform=other)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        regionclip_jax.lode  # noqa: B018


@pytest.fixture(scope="module")
def detector(tmp_path_factory, nano_variables, nano_configs, nano_localizer):
    """Model with a localizer (the paper's word for a region proposal network).

    All its logits are negative, so the reference's objectness would leave no detection.
    """
    directory = tmp_path_factory.mktemp("models") / "detector"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    variables = jax.tree.map(np.array, variables)
    variables["params"]["head"]["objectness"]["kernel"] *= 0.01
    variables["params"]["head"]["objectness"]["bias"][:] = -3
    save_localizer(directory, variables, card)
    return regionclip_jax.load(directory, short_side=64, max_long_side=128, batch_size=2)


NAMES = ["cat", "remote control", "dog"]


def test_objects_are_detected_by_name_in_pixels_of_the_image(detector, image):
    """The scores are probabilities, and regions with negative logits have some."""
    predictions = detector.detect(image, NAMES)
    assert len(predictions) > 5 and predictions.boxes.shape == (len(predictions), 4)
    scores = predictions.scores
    assert (np.diff(scores) <= 0).all() and 0 < scores.min() <= scores.max() < 1
    assert predictions.names == tuple(NAMES[k] for k in predictions.classes)
    assert (predictions.boxes >= 0).all() and (predictions.boxes <= [90, 60, 90, 60]).all()
    large = np.asarray(Image.fromarray(image).resize((180, 120), Image.Resampling.BICUBIC))
    enlarged = detector.detect(large, NAMES, objectness="sigmoid")
    assert 120 < enlarged.boxes[:, 2].max() <= 180 and 80 < enlarged.boxes[:, 3].max() <= 120
    # Anchors react to small differences of images, so only some boxes are exactly doubled.
    best = {tuple(np.round(box)) for box in predictions.boxes}
    doubled = {tuple(np.round(box / 2)) for box in enlarged.boxes}
    assert len(best & doubled) > 0.2 * len(best)


def test_a_list_of_images_gives_the_predictions_of_each_image_alone(detector, image):
    images = [image, image[:, ::-1], image.transpose(1, 0, 2), image[:50]]
    together = detector.detect(images, NAMES, objectness="sigmoid")
    for one, predictions in zip(images, together, strict=True):
        alone = detector.detect(one, NAMES, objectness="sigmoid")
        np.testing.assert_allclose(predictions.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(predictions.scores, alone.scores, atol=1e-5)
        assert predictions.names == alone.names


def test_given_boxes_are_named_and_not_moved(detector, model, image):
    for each in (detector, model):
        predictions = each.detect(image, NAMES, boxes=BOXES, nms_threshold=1.0)
        assert len(predictions) == len(BOXES) * len(NAMES)
        rows = [np.abs(BOXES - box).max(1).argmin() for box in predictions.boxes]
        np.testing.assert_allclose(predictions.boxes, BOXES[rows], atol=1e-3)
        # The separate calls give the same result.
        probabilities = each.classify(each.encode_regions(image, BOXES), NAMES)
        expected = probabilities[rows, predictions.classes]
        np.testing.assert_allclose(predictions.scores, expected, atol=1e-4)
    pair = detector.detect([image, image], NAMES, boxes=[BOXES, BOXES[:1]])
    assert len(pair[1]) == len(NAMES)
    assert len(detector.detect(image, NAMES, boxes=np.zeros((0, 4)))) == 0
    with pytest.raises(ValueError, match="1 arrays, expected one for each of 2 images"):
        detector.detect([image, image], NAMES, boxes=[BOXES])


def test_a_trained_detector_moves_proposals_but_not_given_boxes_with_its_own_settings(
    tmp_path, nano_variables, nano_configs, nano_localizer, image, model
):
    """The box head of this test moves every box to the right by a tenth of its width."""
    scores = ScoreSettings(
        ProposalSettings(20, None, 0.7),
        DetectionSettings(
            temperature=0.3, objectness="none", nms=NmsSettings(threshold=1.0), max_detections=60
        ),
    )
    card = ModelCard(nano_configs["resnet"], {}, scores=scores)
    save_model(tmp_path, nano_variables("resnet"), card)
    card, variables = nano_localizer
    save_localizer(tmp_path, variables, card)
    deltas = {"kernel": np.zeros((32, 4), np.float32), "bias": np.eye(4, dtype=np.float32)[0]}
    heads = {"params": {"box_head": {"deltas": deltas}}, "batch_stats": {}}
    save_heads(tmp_path, heads, HeadsCard(HeadsConfig(32, None), {}))
    detector = regionclip_jax.load(tmp_path, short_side=64, max_long_side=128)
    predictions = detector.detect(image, NAMES)
    proposals = detector.propose(image).boxes
    assert len(proposals) == 20
    regions, classes = model.encode_regions(image, proposals), model.encode_text(NAMES)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (regions, classes)]
    powers = np.exp(unit[0] @ unit[1].T / 0.3)
    probabilities = powers / (1 + powers.sum(1, keepdims=True))
    width = proposals[:, 2] - proposals[:, 0]
    moved = proposals + 0.1 * width[:, None] * [1, 0, 1, 0]
    moved[:, [0, 2]] = np.minimum(moved[:, [0, 2]], image.shape[1])
    distance = np.abs(predictions.boxes[:, None] - moved).max(-1)
    assert len(predictions) > 20 and distance.min(1).max() < 0.01
    # Without objectness a score is a probability at the directory's temperature.
    expected = probabilities[distance.argmin(1), predictions.classes]
    np.testing.assert_allclose(predictions.scores, expected, atol=1e-4)
    given = detector.detect(image, NAMES, boxes=BOXES, nms_threshold=1.0)
    assert np.abs(given.boxes[:, None] - BOXES).max(-1).min(1).max() < 1e-3


def test_tiles_of_an_image_are_detected_and_merged(detector, image):
    """The detections are those of the crops, moved, and of the whole, without duplicates."""
    large = np.tile(image, (2, 2, 1))[:110, :160]
    found = detector.detect_tiles(large, NAMES, tile=90, overlap=0.0)
    assert found.size == (110, 160) and 0 < len(found) <= 100
    assert (np.diff(found.scores) <= 0).all() and found.vocabulary == tuple(NAMES)
    assert found.names == tuple(NAMES[k] for k in found.classes)
    places = [(0, 0), (70, 0), (0, 20), (70, 20)]
    crops = [large[y : y + 90, x : x + 90] for x, y in places]
    alone = [detector.detect(large, NAMES), *detector.detect(crops, NAMES)]
    every = [
        (*(box + np.array([x, y, x, y], np.float32)).tolist(), round(float(score), 5))
        for (x, y), some in zip([(0, 0), *places], alone, strict=True)
        for box, score in zip(some.boxes, some.scores, strict=True)
    ]
    rows = [
        (*box, round(float(score), 5))
        for box, score in zip(found.boxes.tolist(), found.scores, strict=True)
    ]
    assert set(rows) <= set(every) and len(rows) < len(every)
    assert rows[0][4] == max(row[4] for row in every)
    assert len(detector.detect_tiles(large, NAMES, tile=90, max_detections=3)) == 3
    # An image within a tile is detected as ever.
    small = detector.detect_tiles(image, NAMES, tile=90)
    np.testing.assert_array_equal(small.boxes, detector.detect(image, NAMES).boxes)
    for wrong in ({"tile": 0}, {"tile": 9, "overlap": 1}, {"tile": 9, "merge_threshold": -1}):
        with pytest.raises(ValueError, match=": found "):
            detector.detect_tiles(image, NAMES, **wrong)
    with pytest.raises(ValueError, match="boxes: "):
        detector.detect_tiles(image, NAMES, tile=9, boxes=BOXES)


def test_regions_can_be_proposed_without_names(detector, image):
    proposals = detector.propose(image, num_proposals=40)
    assert proposals.boxes.shape == (len(proposals), 4) and 10 < len(proposals) <= 40
    assert (np.diff(proposals.logits) <= 0).all() and (proposals.logits < 0).all()
    assert detector.encode_regions(image, proposals.boxes).shape == (len(proposals), 32)


def test_without_a_localizer_boxes_are_needed(model, image):
    assert not model.has_localizer
    for ask in (lambda: model.detect(image, NAMES), lambda: model.propose(image)):
        with pytest.raises(CheckpointMismatch, match="--localizer FILE_OR_DIR, or give boxes"):
            ask()


def test_a_vocabulary_comes_from_memory_a_file_or_the_model_directory(
    detector, model, image, tmp_path, nano_variables, nano_configs
):
    vocabulary = detector.vocabulary(NAMES)
    assert detector.vocabulary(list(NAMES)) is vocabulary
    vocabulary.save(tmp_path / "pets.npz")
    expected = detector.detect(image, NAMES, boxes=BOXES)
    for same in (vocabulary, tmp_path / "pets.npz", str(tmp_path / "pets.npz")):
        predictions = detector.detect(image, same, boxes=BOXES)
        np.testing.assert_array_equal(predictions.scores, expected.scores)
        assert predictions.names == expected.names
    with pytest.raises(CheckpointMismatch, match="expected a vocabulary, found no file"):
        detector.detect(image, boxes=BOXES)

    other = tmp_path / "other"
    card = ModelCard(nano_configs["resnet"], {})
    save_model(other, nano_variables("resnet", seed=1), card)
    vocabulary.save(other / "vocabulary.npz")
    with pytest.raises(CheckpointMismatch, match="does not fit the model"):
        regionclip_jax.load(other).vocabulary()


@pytest.fixture
def compiled():
    """Names of the programs that were compiled since the start of the test."""
    names = []

    class Names(logging.Handler):
        def emit(self, record):
            if found := re.match(r"Compiling (.*) with global shapes", record.getMessage()):
                names.append(found[1])

    handler, logger = Names(logging.DEBUG), logging.getLogger("jax._src.interpreters.pxla")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield names
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_other_thresholds_names_counts_and_images_need_no_other_program(detector, image, compiled):
    def key(found):
        return found.names, found.scores.tolist(), found.boxes.tolist()

    every = detector.detect(image, NAMES, objectness="sigmoid")
    # Embeddings of names are one program for prompts of like length; it is not the question here.
    others = [
        detector.vocabulary(names)
        for names in (["dog"], ["cat", "remote control", "dog", "bus", "zebra"])
    ]
    regions = detector.encode_regions(image, BOXES)
    detector.classify(regions, NAMES)
    # Full batches and single images have a program each.
    detector.detect([image] * 3, NAMES, objectness="sigmoid")
    compiled.clear()
    few = detector.detect(image, NAMES, objectness="sigmoid", max_detections=7)
    assert key(few) == tuple(part[:7] for part in key(every))
    middle = float(np.median(every.scores))
    better = detector.detect(image, NAMES, objectness="sigmoid", score_threshold=middle)
    assert key(better) == tuple(part[: int((every.scores > middle).sum())] for part in key(every))
    fewer = detector.detect(image, NAMES, objectness="sigmoid", nms_threshold=0.1)
    assert 0 < len(fewer) < len(every)
    detector.detect(image, NAMES, objectness="sigmoid", proposal_nms_threshold=0.5)
    detector.detect([image[:, :80]] * 3, NAMES, objectness="sigmoid")
    assert len(detector.encode_regions(image, BOXES[:2])) == 2
    for vocabulary in others:
        found = detector.detect(image, vocabulary, objectness="sigmoid", score_threshold=0)
        assert len(found) and set(found.names) <= set(vocabulary.names)
        # Probabilities are those of the given names alone; padding has none.
        unit_regions, unit_names = (
            x / np.linalg.norm(x, axis=1, keepdims=True)
            for x in (regions.astype(np.float64), vocabulary.embeddings)
        )
        powers = np.exp(unit_regions @ unit_names.T / detector.temperature)
        expected = powers / (1 + powers.sum(1, keepdims=True))
        np.testing.assert_allclose(detector.classify(regions, vocabulary), expected, rtol=1e-3)
    assert compiled == []


def test_programs_and_vocabularies_in_memory_are_bounded(detector):
    for cached in (detector._predictor._program, detector._embed_names):
        assert 0 < cached.cache_info().maxsize <= 32


@pytest.mark.parametrize("threshold", [-0.5, float("nan")])
def test_a_negative_score_threshold_is_refused(detector, image, threshold):
    with pytest.raises(ValueError, match="score_threshold: "):
        detector.detect(image, NAMES, score_threshold=threshold)
    with pytest.raises(ValueError, match="threshold: expected a number from 0 to 1, found 50.0"):
        detector.detect(image, NAMES, nms_threshold=50.0)
