"""The PyTorch counterparts of the benchmark give the results of this package."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.models.clip import CLIP, encode_regions
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.sampling import random_boxes
from regionclip_jax.settings import ProposalSettings
from regionclip_jax.steps import pretrain_step
from regionclip_jax.steps.predict_step import (
    DetectorVariables,
    make_predict_step,
    proposals_of,
)
from regionclip_jax.structures import DetectionBatch, ImageTextBatch, Preprocessing, Regions

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmarks import (  # noqa: E402
    detection,
    pretraining,
    torch_clip,
    torch_detection,
    torch_localizer,
    torch_pretraining,
)
from benchmarks.random_weights import draw_weights  # noqa: E402
from benchmarks.text import made_up_tokens  # noqa: E402
from benchmarks.torch_layers import TorchRunner  # noqa: E402

pytestmark = pytest.mark.parity

CONFIG, PYRAMID = PRESETS["scenes"], LOCALIZER_PRESETS["small"]
HEIGHT, WIDTH = 64, 96
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
SIZES = jnp.tile(jnp.array([[HEIGHT, WIDTH]], jnp.int32), (2, 1))
TOKENS = made_up_tokens(2, CONFIG.text.context_length, CONFIG.text.vocab_size)
CONCEPTS = RNG.standard_normal((40, CONFIG.embed_dim)).astype(np.float32)
VIT = dataclasses.replace(
    CONFIG,
    image=ViTConfig(16, layers=3, width=64, heads=2, activation="gelu", mlp_width=200),
    preprocessing=Preprocessing(64),
)


@pytest.fixture(scope="module")
def runner():
    return TorchRunner("float32", compiled=False)


def varied(abstract: dict, seed: int) -> dict:
    """Return random weights with random norms and zero-mean kernels, so that regions differ."""
    rng = np.random.default_rng(seed)

    def vary(leaf):
        if leaf.ndim > 1:
            return leaf - leaf.mean(tuple(range(leaf.ndim - 1)))
        return leaf * rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32) + 0.02

    return jax.tree.map(vary, draw_weights(abstract, seed))


@pytest.fixture(scope="module", params=[CONFIG, VIT], ids=["resnet", "vit"])
def model(request):
    return CLIP(request.param)


@pytest.fixture(scope="module")
def variables(model):
    return varied(abstract_variables(model.config), 1)


@pytest.fixture(scope="module")
def boxes():
    return random_boxes(jax.random.key(0), SIZES, 5, 8)


def assert_close(theirs, ours, tolerance=1e-4):
    ours = np.asarray(ours)
    assert np.isfinite(ours).all() and np.abs(ours).max() > 0
    error = np.abs(theirs.detach().cpu().numpy() - ours).max() / np.abs(ours).max()
    assert error < tolerance, error


def test_features_regions_and_texts_equal_those_of_this_package(runner, model, variables, boxes):
    theirs = torch_clip.torch_clip(model.config, variables, runner, canvas=(HEIGHT, WIDTH))

    @jax.jit
    def ours(variables, boxes, tokens):
        pixels = normalize_images(jnp.asarray(IMAGES), SIZES, model.config.preprocessing)
        features = model.apply(variables, pixels, SIZES, method=model.image_features)
        texts = model.apply(variables, tokens, method=model.encode_text)
        return features.map, encode_regions(model, variables, features, boxes), texts

    feature_map, regions, texts = ours(variables, boxes, jnp.asarray(TOKENS))
    features = theirs.image_features(runner.tensor(IMAGES))
    assert_close(features.permute(0, 2, 3, 1), feature_map)
    assert_close(theirs.encode_regions(features, runner.tensor(boxes)), regions)
    assert_close(theirs.encode_text(runner.tensor(TOKENS).long()), texts)


def test_pretraining_losses_and_gradients_equal_those_of_this_package(
    runner, model, variables, boxes
):
    settings = pretraining.settings_of(5, None)
    teacher = varied(abstract_variables(model.config), 2)
    frozen = pretrain_step.Frozen(teacher, jnp.asarray(CONCEPTS), jnp.asarray(CONCEPTS))
    batch = ImageTextBatch(
        jnp.asarray(IMAGES), SIZES, jnp.asarray(TOKENS), jnp.ones(len(IMAGES), bool)
    )
    regions = Regions(boxes, jnp.zeros(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))
    # The ViT resizes its positions, so their gradient is compared too.
    kernel = "visual/layer4/block0/conv2/kernel"
    trained = [kernel]
    if isinstance(model.config.image, ViTConfig):
        kernel = "visual/blocks/block1/mlp/c_fc/kernel"
        trained = [kernel, "visual/positional_embedding"]
    flat = flatten_dict(variables["params"], sep="/")

    @jax.jit
    def ours(leaves):
        student = variables | {"params": unflatten_dict(flat | leaves, sep="/")}
        labels = pretrain_step.label_with_teacher(
            model, frozen, batch.images, SIZES, regions, settings
        )
        embeddings = pretrain_step.embed_with_student(model, student, batch, boxes, settings)
        losses = pretrain_step.pretrain_losses(embeddings, batch.mask, labels, frozen, settings)
        return sum(losses.values()), losses

    (_, losses), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(
        {path: flat[path] for path in trained}
    )

    canvas = HEIGHT, WIDTH
    their_teacher = torch_clip.torch_clip(model.config, teacher, runner, canvas)
    student = torch_clip.torch_clip(model.config, variables, runner, canvas)
    parameters = torch_pretraining.train_as_ours(student, {p: flat[p].ndim for p in trained})
    assert len(parameters) == len(trained)
    images, their_boxes = runner.tensor(IMAGES), runner.tensor(boxes)
    concepts = runner.tensor(CONCEPTS)
    labels = torch_pretraining.label_with_teacher(
        their_teacher, images, their_boxes, concepts, settings
    )
    their_losses = torch_pretraining.losses_of(
        student, images, runner.tensor(TOKENS).long(), their_boxes, concepts, labels, settings
    )
    assert min(losses.values()) > 0.01
    for name, loss in losses.items():
        assert_close(their_losses[name], loss)
    sum(their_losses.values()).backward()
    if isinstance(model.config.image, ViTConfig):
        block = student.visual.transformer["resblocks"][1]
        assert_close(block.mlp["c_fc"].weight.grad.T, gradient[kernel])
        positions = student.visual.positional_embedding.grad
        assert_close(positions, gradient["visual/positional_embedding"])
    else:
        grad = student.visual.layer4[0].conv2.weight.grad.permute(2, 3, 1, 0)
        assert_close(grad, gradient[kernel])


def test_detections_equal_those_of_this_package(runner, model, variables):
    localizer = Localizer(PYRAMID)
    pyramid = varied(abstract_localizer(PYRAMID), 3)
    settings = detection.settings_of(None)
    proposals = ProposalSettings(pre_nms_topk=40, num_proposals=20)
    batch = DetectionBatch(
        images=jnp.asarray(IMAGES),
        sizes=SIZES,
        boxes=jnp.zeros((2, 1, 4)),
        classes=jnp.zeros((2, 1), jnp.int32),
        box_mask=jnp.zeros((2, 1), bool),
        image_ids=jnp.arange(2, dtype=jnp.int32),
        scales=jnp.ones((2, 2)),
        mask=jnp.ones(2, bool),
    )
    step = jax.jit(make_predict_step(model, settings, proposals_of(localizer, proposals)))
    ours = step(DetectorVariables(variables, jnp.asarray(CONCEPTS), pyramid), batch)

    detect = torch_detection.make_detect(
        torch_clip.torch_clip(model.config, variables, runner, canvas=(HEIGHT, WIDTH)),
        torch_localizer.torch_localizer(PYRAMID, pyramid, runner),
        torch_localizer.torch_anchors(PYRAMID, HEIGHT, WIDTH, runner),
        runner.tensor(CONCEPTS),
        settings,
        proposals,
        compile_=lambda function: function,
    )
    for number, (their_boxes, classes, scores) in enumerate(detect(runner.tensor(IMAGES))):
        real = np.asarray(ours.detections.mask[number])
        assert real.sum() == len(scores) > 10
        # At temperature 0.01 an error of 1e-6 in a cosine is 1e-4 in a score. Other convolution
        # algorithms in the pyramid moved a box of 96 pixels by 0.02.
        assert_close(scores, ours.detections.scores[number][real], 1e-3)
        assert_close(their_boxes, ours.detections.boxes[number][real], 1e-3)
        assert classes.tolist() == ours.detections.classes[number][real].tolist()
