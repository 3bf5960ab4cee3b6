"""Steps that compute in bfloat16 against the same steps in float32: losses, gradients, types."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.settings import (
    DetectorObjective,
    LocalizerObjective,
    PretrainObjective,
    ProposalSettings,
)
from regionclip_jax.steps.detector_step import FrozenDetectorParts, make_detector_step
from regionclip_jax.steps.localizer_step import make_localizer_step
from regionclip_jax.steps.pretrain_step import Frozen, make_pretrain_step
from regionclip_jax.steps.train_state import create_train_state
from regionclip_jax.structures import DetectionBatch

# The first update of this optimizer is the gradient, and it has a state.
OPTIMIZER = optax.sgd(1.0, momentum=0.9)
FROZEN = ("^text/", "^logit_scale$", "visual/stem/", "norm")


class Comparison(NamedTuple):
    cosine: float
    float32: dict
    bfloat16: dict

    def difference(self, metric: str) -> float:
        """Relative difference of a metric."""
        return abs(self.bfloat16[metric] / self.float32[metric] - 1)


def compare(make_step, state, frozen, batch) -> Comparison:
    """Take one step in each dtype, and check that state and metrics are float32."""
    gradients, metrics = [], []
    for dtype in (jnp.float32, jnp.bfloat16):
        after, step_metrics = jax.jit(make_step(dtype))(state, frozen, batch)
        kept = (after.params, after.opt_state, after.frozen_params, after.batch_stats)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"float32"}
        assert "bfloat16" not in {leaf.dtype.name for leaf in jax.tree.leaves(step_metrics)}
        steps = jax.tree.map(lambda a, b: np.ravel(a - b), state.params, after.params)
        gradients.append(np.concatenate(jax.tree.leaves(steps)))
        metrics.append(jax.device_get(step_metrics))
    one, other = gradients
    assert (one != other).any()
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    return Comparison(float(cosine), *metrics)


@pytest.fixture(scope="module")
def images():
    """Eight images of squares of random colours.

    Tokens of an image of one colour are nearly equal. The gradient of the attention pool's scores
    is then a small difference of large numbers, which bfloat16 rounds away.
    """
    colours = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    return jnp.asarray(colours.repeat(16, 1).repeat(16, 2))


def test_a_pretraining_step_is_close_to_float32(nano_configs, nano_variables, pair_batch, images):
    """Measured: cosine 0.9993; the loss differs by 0.25%, its parts by 0.11 to 0.34%."""
    settings = PretrainObjective(
        proposals=ProposalSettings(num_proposals=12, pre_nms_topk=40, nms_threshold=0.9),
        num_regions=5,
        temperature=0.1,
        teacher_temperature=0.1,
        concept_threshold=0.3,
        images_per_group=4,
        regions_per_chunk=None,
    )

    def make_step(dtype):
        model = CLIP(nano_configs["resnet"], dtype=dtype)
        return make_pretrain_step(model, model, OPTIMIZER, settings, seed=1)

    concepts = jax.random.normal(jax.random.key(3), (2, 10, 32))
    comparison = compare(
        make_step,
        create_train_state(nano_variables("resnet"), FROZEN, OPTIMIZER),
        Frozen(nano_variables("resnet", seed=1), concepts[0], concepts[1]),
        pair_batch.replace(images=images),
    )
    assert comparison.cosine > 0.999 and comparison.difference("loss") < 0.005
    for name in ("loss_image_text", "loss_distillation", "loss_contrastive"):
        assert comparison.difference(name) < 0.01, name


@pytest.fixture(scope="module")
def batch(images) -> DetectionBatch:
    """Batch of the images with three boxes each."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 30, (8, 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(15, 30, low.shape)], -1).astype(np.float32)
    return DetectionBatch(
        images=images,
        sizes=np.full((8, 2), 64, np.int32),
        boxes=boxes,
        classes=rng.integers(0, 5, (8, 3)).astype(np.int32),
        box_mask=np.ones((8, 3), bool),
        image_ids=np.arange(8, dtype=np.int32),
        scales=np.ones((8, 2), np.float32),
        mask=np.ones(8, bool),
    )


def test_a_detector_step_is_close_to_float32(nano_configs, nano_variables, nano_localizer, batch):
    """Both steps have a float32 localizer, so that they sample the same boxes.

    Measured: cosine 0.99995; the loss differs by 0.16%.
    """
    settings = DetectorObjective(
        proposals=ProposalSettings(num_proposals=20, pre_nms_topk=40, nms_threshold=0.7),
        samples_per_image=8,
        positive_fraction=0.5,
        temperature=0.1,
        regions_per_chunk=None,
    )
    card, localizer = nano_localizer
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.normal(size=(32, 4)) * 0.01, jnp.float32)
    clip = nano_variables("resnet")
    params = clip["params"] | {"box_head": {"deltas": {"kernel": kernel, "bias": jnp.zeros(4)}}}
    state = create_train_state(clip | {"params": params}, FROZEN, OPTIMIZER)
    comparison = compare(
        lambda dtype: make_detector_step(
            CLIP(nano_configs["resnet"], dtype=dtype),
            Localizer(card.architecture),
            OPTIMIZER,
            settings,
            seed=0,
        ),
        state,
        FrozenDetectorParts(localizer, rng.normal(size=(5, 32)).astype(np.float32)),
        batch,
    )
    assert comparison.cosine > 0.999 and comparison.difference("loss") < 0.005


def test_a_localizer_step_is_close_to_float32(nano_localizer, batch):
    """Measured: cosine 0.9999; the loss differs by 0.03%.

    With live norms, whose gradients are differences too, these four channels measured 0.989.
    """
    card, variables = nano_localizer
    settings = LocalizerObjective(anchors_per_image=32)

    def make_step(dtype):
        localizer = Localizer(card.architecture, dtype)
        step = make_localizer_step(localizer, OPTIMIZER, settings, seed=0)
        return lambda state, frozen, batch: step(state, batch)

    state = create_train_state(variables, ("norm",), OPTIMIZER)
    comparison = compare(make_step, state, {}, batch)
    assert comparison.cosine > 0.999 and comparison.difference("loss") < 0.005
