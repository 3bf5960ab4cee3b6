"""The public face: five lines of Python, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

import regionclip_jax
from regionclip_jax.artifacts.detector_heads import HeadsCard, HeadsConfig, save_heads
from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard
from regionclip_jax.artifacts.model_checkpoint import save_model
from regionclip_jax.data.pictures import read_picture
from regionclip_jax.data.records import RecordError


@pytest.fixture(scope="module")
def model(tmp_path_factory, nano_variables, nano_configs):
    directory = tmp_path_factory.mktemp("models") / "nano"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    return regionclip_jax.load(directory, short_side=64, max_long_side=128)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


BOXES = np.array([[5, 5, 40, 50], [50, 10, 85, 30], [0, 0, 90, 60]], np.float32)


def test_regions_of_a_picture_become_rows_in_the_order_of_the_boxes(model, picture):
    found = model.encode_regions(picture, BOXES)
    assert isinstance(found, np.ndarray) and found.shape == (3, 32) and np.isfinite(found).all()
    np.testing.assert_allclose(model.encode_regions(picture, BOXES[::-1])[::-1], found, atol=1e-5)
    assert model.encode_regions(picture, np.zeros((0, 4))).shape == (0, 32)


def test_a_picture_may_be_an_array_a_pil_picture_or_a_path(model, picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = model.encode_regions(picture, BOXES)
    for same in (Image.fromarray(picture), path, str(path)):
        np.testing.assert_array_equal(model.encode_regions(same, BOXES), expected)


def test_boxes_are_in_pixels_of_the_picture_as_given(model, picture):
    """An enlarged picture with enlarged boxes shows the same things."""
    large = np.asarray(Image.fromarray(picture).resize((180, 120), Image.Resampling.BICUBIC))
    small, large = model.encode_regions(picture, BOXES), model.encode_regions(large, 2 * BOXES)
    cosines = (small * large).sum(1) / np.linalg.norm(small, axis=1) / np.linalg.norm(large, axis=1)
    assert cosines.min() > 0.95


def test_the_same_shapes_are_compiled_once(model, picture):
    model.encode_regions(picture, BOXES)
    before = model._embed_regions._cache_size()
    model.encode_regions(picture[:, :80], BOXES[:1])
    model.encode_regions(picture, np.repeat(BOXES, 8, 0))
    assert model._embed_regions._cache_size() == before


@pytest.mark.parametrize(
    "mode", ["L", "P", "CMYK", "RGBA", "1", "LA", "I;16"], ids=lambda m: m.replace(";", "")
)
def test_every_kind_of_picture_is_read(model, mode):
    picture = Image.fromarray(np.full((40, 50), 20000, np.uint16)) if mode == "I;16" else None
    picture = picture or Image.new("RGB", (50, 40), (120, 60, 20)).convert(mode)
    found = model.encode_regions(picture, [[0, 0, 20, 20]])
    assert found.shape == (1, 32) and np.isfinite(found).all()


def test_a_file_is_turned_as_its_exif_says(model, picture, tmp_path):
    turned = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to look at it
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), picture)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 2)])
def test_a_picture_of_any_proportions_fits_a_canvas(model, shape):
    picture = np.zeros((*shape, 3), np.uint8)
    found = model.encode_regions(picture, [[0, 0, shape[1], shape[0]]])
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5]], r"expected \[R, 4\]"),
        ([1, 2, 3, 4], r"expected \[R, 4\]"),
        ([[0, 0, 5, 5], [8, 8, 5, 9]], "row 1 is .*x1 < x2"),
        ([[0, 0, np.nan, 5]], "row 0"),
    ],
)
def test_boxes_that_are_none_are_refused(model, picture, boxes, message):
    with pytest.raises(ValueError, match=message):
        model.encode_regions(picture, boxes)


def test_pictures_that_are_none_are_refused(model, picture, tmp_path):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\].*float64 \[60, 90, 3\]"):
        model.encode_regions(picture / 255, BOXES)
    with pytest.raises(ValueError, match=r"found uint8 \[3, 60, 90\]"):
        model.encode_regions(picture.transpose(2, 0, 1), BOXES)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(RecordError, match="cut.jpg"):
        model.encode_regions(tmp_path / "cut.jpg", BOXES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found none"),
        (["cat", " "], "an empty name"),
        (["cat", "dog", "cat "], r"\['cat'\] more than once"),
        ("cat, dog", "expected a list of names, found the string"),
    ],
)
def test_names_that_are_none_are_refused(model, names, message):
    with pytest.raises(ValueError, match=message):
        model.encode_text(names)


def test_a_folder_without_a_model_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(CheckpointMismatch, match="convert_checkpoint.py"):
        regionclip_jax.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        regionclip_jax.lode  # noqa: B018


@pytest.fixture(scope="module")
def detector(tmp_path_factory, nano_variables, nano_configs, nano_localizer):
    """A model directory with a localizer."""
    directory = tmp_path_factory.mktemp("models") / "detector"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    save_localizer(directory, variables, card)
    return regionclip_jax.load(directory, short_side=64, max_long_side=128, batch_size=2)


NAMES = ["cat", "remote control", "dog"]


def test_objects_are_detected_by_name_in_pixels_of_the_picture(detector, picture):
    found = detector.detect(picture, NAMES, objectness="sigmoid")
    assert len(found) > 5 and found.boxes.shape == (len(found), 4)
    assert (np.diff(found.scores) <= 0).all() and 0 < found.scores.min() <= found.scores.max() < 1
    assert found.names == tuple(NAMES[k] for k in found.classes)
    assert (found.boxes >= 0).all() and (found.boxes <= [90, 60, 90, 60]).all()
    large = np.asarray(Image.fromarray(picture).resize((180, 120), Image.Resampling.BICUBIC))
    twice = detector.detect(large, NAMES, objectness="sigmoid")
    assert 120 < twice.boxes[:, 2].max() <= 180 and 80 < twice.boxes[:, 3].max() <= 120
    # Anchors tell pictures apart that are nearly the same, so only some boxes are the doubled ones.
    best = {tuple(np.round(box)) for box in found.boxes}
    doubled = {tuple(np.round(box / 2)) for box in twice.boxes}
    assert len(best & doubled) > 0.2 * len(best)


def test_a_list_of_pictures_gives_what_each_gives_alone(detector, picture):
    pictures = [picture, picture[:, ::-1], picture.transpose(1, 0, 2), picture[:50]]
    together = detector.detect(pictures, NAMES, objectness="sigmoid")
    for one, found in zip(pictures, together, strict=True):
        alone = detector.detect(one, NAMES, objectness="sigmoid")
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        assert found.names == alone.names


def test_given_boxes_are_named_and_stay_where_they_are(detector, model, picture):
    for each in (detector, model):
        found = each.detect(picture, NAMES, boxes=BOXES, nms_threshold=1.0)
        assert len(found) == len(BOXES) * len(NAMES)
        rows = [np.abs(BOXES - box).max(1).argmin() for box in found.boxes]
        np.testing.assert_allclose(found.boxes, BOXES[rows], atol=1e-3)
        # The same as the parts say.
        probabilities = each.classify(each.encode_regions(picture, BOXES), NAMES)
        np.testing.assert_allclose(found.scores, probabilities[rows, found.classes], atol=1e-4)
    pair = detector.detect([picture, picture], NAMES, boxes=[BOXES, BOXES[:1]])
    assert len(pair[1]) == len(NAMES)
    assert len(detector.detect(picture, NAMES, boxes=np.zeros((0, 4)))) == 0
    with pytest.raises(ValueError, match="1 arrays, expected one for each of 2 images"):
        detector.detect([picture, picture], NAMES, boxes=[BOXES])


def test_a_trained_detector_moves_its_own_proposals_and_no_given_boxes(
    tmp_path, nano_variables, nano_configs, nano_localizer, picture
):
    """Its box head here says: a tenth of the width to the right, whatever it sees."""
    save_model(tmp_path, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    save_localizer(tmp_path, variables, card)
    deltas = {"kernel": np.zeros((32, 4), np.float32), "bias": np.eye(4, dtype=np.float32)[0]}
    save_heads(tmp_path, {"box_head": {"deltas": deltas}}, HeadsCard(HeadsConfig(32, None), {}))
    detector = regionclip_jax.load(tmp_path, short_side=64, max_long_side=128)
    found = detector.detect(
        picture, NAMES, objectness="none", nms_threshold=1.0, num_proposals=20, max_detections=60
    )
    proposals = detector.propose(picture, num_proposals=20, nms_threshold=0.9).boxes
    width = proposals[:, 2] - proposals[:, 0]
    moved = proposals + 0.1 * width[:, None] * [1, 0, 1, 0]
    moved[:, [0, 2]] = np.minimum(moved[:, [0, 2]], picture.shape[1])
    distance = np.abs(found.boxes[:, None] - moved).max(-1)
    assert len(found) > 20 and distance.min(1).max() < 0.01
    given = detector.detect(picture, NAMES, boxes=BOXES, nms_threshold=1.0)
    assert np.abs(given.boxes[:, None] - BOXES).max(-1).min(1).max() < 1e-3


def test_regions_can_be_proposed_without_names(detector, picture):
    found = detector.propose(picture, num_proposals=40)
    assert found.boxes.shape == (len(found), 4) and 10 < len(found) <= 40
    assert (np.diff(found.logits) <= 0).all()
    assert detector.encode_regions(picture, found.boxes).shape == (len(found), 32)


def test_without_a_localizer_boxes_are_needed(model, picture):
    assert not model.has_localizer
    for ask in (lambda: model.detect(picture, NAMES), lambda: model.propose(picture)):
        with pytest.raises(CheckpointMismatch, match="--localizer FILE, or give boxes"):
            ask()


def test_a_vocabulary_is_used_from_memory_file_or_the_models_own_directory(
    detector, model, picture, tmp_path, nano_variables, nano_configs
):
    vocabulary = detector.vocabulary(NAMES)
    assert detector.vocabulary(list(NAMES)) is vocabulary
    vocabulary.save(tmp_path / "pets.npz")
    expected = detector.detect(picture, NAMES, boxes=BOXES)
    for same in (vocabulary, tmp_path / "pets.npz", str(tmp_path / "pets.npz")):
        found = detector.detect(picture, same, boxes=BOXES)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert found.names == expected.names
    with pytest.raises(CheckpointMismatch, match="expected a vocabulary, found no file"):
        detector.detect(picture, boxes=BOXES)

    other = tmp_path / "other"
    card = ModelCard(nano_configs["resnet"], {})
    save_model(other, nano_variables("resnet", seed=1), card)
    vocabulary.save(other / "vocabulary.npz")
    with pytest.raises(CheckpointMismatch, match="does not fit the model"):
        regionclip_jax.load(other).vocabulary()


def test_few_programs_are_compiled(detector, picture):
    detector.detect(picture, NAMES)
    (step,) = [s for (settings, _, part), s in detector._steps.items()
               if part == "detections" and settings.objectness == "reference"]  # fmt: skip
    before = step._cache_size()
    detector.detect([picture[:, :80]] * 3, NAMES)
    assert step._cache_size() == before
