"""The localizer against golden arrays of the reference, and other variants against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marks import on_accelerators
from parity import localizers
from parity.comparison import assert_equal_to_reference
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import flatten, unflatten
from regionclip_jax.models.localizer import (
    Localizer,
    LocalizerConfig,
    init_localizer,
    propose,
)
from regionclip_jax.models.presets import LOCALIZER_PRESETS
from regionclip_jax.settings import ProposalSettings
from regionclip_jax.training.initialization import draw_parameters

NANO = LocalizerConfig(
    blocks=(2, 1, 1, 1), stem_width=3, bottleneck_width=2, features=4, pyramid_channels=5
)
VARIANTS = {
    "jitter": dataclasses.replace(NANO, pyramid_norm=True, head_convs=2),
    "clip": dataclasses.replace(NANO, trunk="clip", stem_width=4, bottleneck_width=4, features=16),
}


@on_accelerators
@pytest.mark.parity
@pytest.mark.parametrize("margin", localizers.MARGINS, ids=["fits", "larger"])
@pytest.mark.parametrize("variant", localizers.STEPS)
def test_head_outputs_equal_the_references_on_any_canvas(variant, margin):
    """Measured: 1.4e-6 (C4), 2.5e-6 (pyramid, 5.1e-6 as quick tests are compiled); fp32 sums in
    another order explain it."""
    assert_equal_to_reference(localizers.compare_head_outputs(variant, margin))


@on_accelerators
@pytest.mark.parity
def test_res4_equals_the_references():
    assert_equal_to_reference(localizers.compare_res4())


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("variant", localizers.STEPS)
def test_proposals_of_a_full_resnet50_equal_the_references(large_golden_folder, variant):
    """From pixels, nearly equal logits may swap their order (12 of 1,000 rows of the pyramid), so
    the test requires 99% of the boxes."""
    assert_equal_to_reference(
        localizers.compare_proposals_of_resnet50(variant, large_golden_folder)
    )


def random_variables(config: LocalizerConfig, seed: int = 0) -> dict:
    """Return random variables with different statistics and scales, which reveal a wrong norm."""
    rng = np.random.default_rng(seed)

    def value(path, shape):
        if path.endswith(("scale", "var")):
            return rng.uniform(0.5, 1.5, shape)
        if path.endswith(("bias", "mean")):
            return 0.1 * rng.standard_normal(shape)
        return rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5

    shapes = flatten(abstract_localizer(config))
    return unflatten({p: value(p, x.shape).astype(np.float32) for p, x in shapes.items()})


class Plain:
    """Localizer in float64 loops over kernel positions, without code of the package."""

    def __init__(self, variables):
        self.leaves = {p: np.asarray(x, np.float64) for p, x in flatten(variables).items()}

    def conv(self, x, path, step=1):
        kernel = self.leaves[f"params/{path}/kernel"]
        size, pad = len(kernel), len(kernel) // 2
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        height, width = (x.shape[0] - size) // step + 1, (x.shape[1] - size) // step + 1
        out = np.zeros((height, width, kernel.shape[-1]))
        for i in range(size):
            for j in range(size):
                window = x[i : i + height * step : step, j : j + width * step : step]
                out += window[:height, :width] @ kernel[i, j]
        return out + self.leaves.get(f"params/{path}/bias", 0.0)

    def norm(self, x, path):
        scale, bias = (self.leaves[f"params/{path}/{leaf}"] for leaf in ("scale", "bias"))
        mean, var = (self.leaves[f"batch_stats/{path}/{leaf}"] for leaf in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def layer(self, x, at, number, step=1):
        """Convolution, norm, ReLU."""
        x = self.norm(self.conv(x, f"{at}/conv{number}", step), f"{at}/norm{number}")
        return np.maximum(x, 0)

    def detectron_trunk(self, pixels, blocks):
        x = pixels[..., ::-1] - np.array([103.53, 116.28, 123.675])
        x = np.pad(self.layer(x, "trunk/stem", 1, 2), ((1, 1), (1, 1), (0, 0)))
        side = x.shape[0] // 2 - 1
        # Padding with zeros equals padding with -inf here, as outputs of a ReLU are not negative.
        shifted = [x[i : i + 2 * side, j : j + 2 * side] for i in range(3) for j in range(3)]
        x, outputs = np.max([y[::2, ::2] for y in shifted], 0), []
        for stage, number in enumerate(blocks, start=2):
            for block in range(number):
                at, step = f"trunk/res{stage}/block{block}", 1 if block or stage == 2 else 2
                y = self.layer(self.layer(x, at, 1, step), at, 2)
                y = self.norm(self.conv(y, f"{at}/conv3"), f"{at}/norm3")
                if block == 0:
                    x = self.norm(self.conv(x, f"{at}/shortcut_conv", step), f"{at}/shortcut_norm")
                x = np.maximum(x + y, 0)
            outputs.append(x)
        return outputs

    def clip_trunk(self, pixels, blocks):
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        x = (pixels / 255 - mean) / std
        for number, step in ((1, 2), (2, 1), (3, 1)):
            x = self.layer(x, "trunk/stem", number, step)
        x, outputs = halve(x), []
        for stage, number in enumerate(blocks, start=1):
            for block in range(number):
                at, shrink = f"trunk/layer{stage}/block{block}", stage > 1 and block == 0
                y = self.layer(self.layer(x, at, 1), at, 2)
                y = halve(y) if shrink else y
                y = self.norm(self.conv(y, f"{at}/conv3"), f"{at}/norm3")
                if block == 0:
                    x = halve(x) if shrink else x
                    x = self.norm(self.conv(x, f"{at}/downsample_conv"), f"{at}/downsample_norm")
                x = np.maximum(x + y, 0)
            outputs.append(x)
        return outputs

    def pyramid(self, stages, norm):
        def convolve(x, name):
            x = self.conv(x, f"pyramid/{name}")
            return self.norm(x, f"pyramid/{name}_norm") if norm else x

        above, levels = 0.0, []
        for number in (5, 4, 3, 2):
            x = convolve(stages[number - 2], f"lateral{number}")
            above = x + (np.kron(above, np.ones((2, 2, 1))) if number < 5 else 0.0)
            levels.insert(0, convolve(above, f"output{number}"))
        return [*levels, levels[-1][::2, ::2]]

    def head(self, x, num_convs):
        for i in range(num_convs):
            x = np.maximum(self.conv(x, f"head/conv{i}"), 0)
        return self.conv(x, "head/objectness").ravel(), self.conv(x, "head/deltas").reshape(-1, 4)


def halve(x):
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


@pytest.mark.property
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_without_golden_arrays_equal_the_formula(name, relative_error):
    """Test large-scale jitter (pyramid norms, two head convolutions) and the trunk of CLIP."""
    config = VARIANTS[name]
    variables = random_variables(config)
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    logits, deltas = jax.jit(Localizer(config).apply)(
        variables, jnp.asarray(image[None]), jnp.array([[64, 64]], jnp.int32)
    )
    plain = Plain(variables)
    trunk = plain.clip_trunk if config.trunk == "clip" else plain.detectron_trunk
    levels = plain.pyramid(trunk(image.astype(np.float64), config.blocks), config.pyramid_norm)
    for level, features in enumerate(levels):
        expected_logits, expected_deltas = plain.head(features, config.head_convs)
        assert relative_error(logits[level][0], expected_logits) < 1e-5
        assert relative_error(deltas[level][0], expected_deltas) < 1e-5


@pytest.mark.parametrize("name", ["scenes", "small"])
def test_a_new_localizer_has_deltas_near_zero_and_kernels_of_the_references_scale(name):
    """With the initial kernels of the other convolutions, deltas were near 6 and not learned."""
    config = LOCALIZER_PRESETS[name]
    variables = draw_parameters(init_localizer, config, jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    (_, deltas), _ = Localizer(config, frozen_norm=False).apply(
        variables, jnp.asarray(image), jnp.array([[64, 64]]), mutable=["batch_stats"]
    )
    assert all(abs(level).max() < 0.5 for level in deltas)
    kernels = {p: x for p, x in flatten(variables["params"]).items() if p.endswith("kernel")}
    for path, kernel in kernels.items():
        fan_in = np.prod(kernel.shape[:-1])
        if path.startswith("head/"):
            assert np.std(kernel) == pytest.approx(0.01, rel=0.2), path
        elif path.startswith("pyramid/"):
            assert np.abs(kernel).max() == pytest.approx((3 / fan_in) ** 0.5, rel=0.01), path


@pytest.mark.property
@pytest.mark.parametrize("pyramid", [None, 5])
def test_no_proposal_comes_from_the_padding_of_an_image(pyramid):
    """A constant trunk gives all anchors equal logits, so proposals depend only on the cells."""
    blocks = (1, 1, 1) if pyramid is None else (1, 1, 1, 1)
    config = dataclasses.replace(NANO, blocks=blocks, pyramid_channels=pyramid)
    localizer = Localizer(config)
    blind = jax.tree.map(lambda x: jnp.zeros(x.shape), abstract_localizer(config))
    proposals = {}
    for canvas in ((64, 96), (128, 160)):
        proposals[canvas] = propose(
            localizer,
            blind,
            jnp.zeros((1, *canvas, 3), jnp.uint8),
            jnp.array([[50, 70]], jnp.int32),
            ProposalSettings(num_proposals=300, pre_nms_topk=500),
        )
    small, large = proposals.values()
    assert 10 < small.mask.sum() == large.mask.sum()
    np.testing.assert_array_equal(small.boxes, large.boxes)
    assert (small.boxes[0, :, 2] <= 70).all() and (small.boxes[0, :, 3] <= 50).all()


def test_a_canvas_that_is_no_multiple_of_the_pyramid_stride_is_refused():
    localizer = Localizer(NANO)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape), abstract_localizer(NANO))
    with pytest.raises(ValueError, match="multiples of 32"):
        localizer.apply(variables, jnp.zeros((1, 48, 64, 3), jnp.uint8), jnp.array([[48, 64]]))
