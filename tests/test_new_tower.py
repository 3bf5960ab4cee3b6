"""A tower family of this test alone needs only the entries that CONTRIBUTING.md lists."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regionclip_jax
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, load_card
from regionclip_jax.conversion import clip_keys, convert_clip
from regionclip_jax.conversion.choices import Choice
from regionclip_jax.conversion.layouts import Layout, Origin, source_shape
from regionclip_jax.jobs import pretrain
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import IMAGE_TOWERS, CLIPConfig, Family, ImageTower
from regionclip_jax.settings import PretrainSettings
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.sharding.partition_rules import parameter_shardings
from regionclip_jax.structures import ImageFeatures, Preprocessing


@dataclasses.dataclass(frozen=True)
class AverageConfig:
    """Sizes of the tower below."""

    patch_size: int

    crop_channels: ClassVar[None] = None
    has_batch_norms: ClassVar[bool] = False

    @property
    def stride(self) -> int:
        return self.patch_size

    def crop_size(self, resolution: int) -> int:
        return 1


class AverageTower(nn.Module):
    """A map of the mean colour of each patch, and a projection of it."""

    config: AverageConfig
    resolution: int
    embed_dim: int
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: str = "all"

    def setup(self):
        init = nn.initializers.normal(1.0)
        self.embedding = nn.Dense(self.embed_dim, dtype=self.dtype, kernel_init=init)

    def features(self, pixels, sizes):
        side = (self.config.patch_size,) * 2
        return ImageFeatures(nn.avg_pool(pixels.astype(self.dtype), side, side), None)

    def embed_crops(self, crops):
        return self.embedding(crops.mean((1, 2)))


CONFIG = CLIPConfig(
    AverageConfig(patch_size=8),
    TextConfig(vocab_size=49408, context_length=77, width=16, heads=2, layers=1),
    Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    embed_dim=6,
    logit_bias=True,
)


def origin(path: str, num_dims: int) -> Origin:
    names = {"visual/embedding/bias": "visual.average.bias", "logit_bias": "logit_bias"}
    if path == "visual/embedding/kernel":
        return Origin("visual.average.weight", Layout.LINEAR)
    if path in names:
        return Origin(names[path], Layout.SAME)
    return clip_keys.origin(path, num_dims)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(IMAGE_TOWERS, "average", Family(AverageConfig, AverageTower))
    monkeypatch.setitem(PRESETS, "average", CONFIG)
    family = convert_clip.CheckpointFamily(
        lambda tensors: "visual.average.weight" in tensors,
        lambda tensors, tower: (tensors, {name: (name,) for name in tensors}),
        lambda tensors, file_name: CONFIG,
        origin,
    )
    monkeypatch.setattr(convert_clip, "FAMILIES", [family, *convert_clip.FAMILIES])


def test_its_pretraining_traces_with_the_preset():
    settings = PretrainSettings()
    models = {
        part: dataclasses.replace(getattr(settings, part), preset="average", init_from="")
        for part in ("student", "teacher")
    }
    patterns = ("^text/", "^logit_")
    optimizer = dataclasses.replace(settings.optimizer, frozen_patterns=patterns)
    settings = dataclasses.replace(settings, optimizer=optimizer, **models)
    training = pretrain.build(settings, pretrain.Assumed(num_names=5))
    initial = training.abstract_state()
    # A run shards its state, so every parameter needs a rule.
    sharded = parameter_shardings(initial, make_mesh(fsdp=2))
    spec = sharded.params["visual"]["embedding"]["kernel"].spec
    assert spec == jax.sharding.PartitionSpec(None, "fsdp")
    state, metrics = jax.eval_shape(
        training.make_step(make_mesh()),
        initial,
        training.abstract_frozen(),
        training.abstract_batch(),
    )
    assert state.params["visual"]["embedding"]["kernel"].shape == (3, 6)
    assert metrics["loss"].shape == () and isinstance(AverageTower(None, 32, 6), ImageTower)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A file, and the tensors that the converter finds in it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for path, leaf in flatten(abstract_variables(CONFIG)).items():
        source = origin(path.partition("/")[2], len(leaf.shape))
        shape = source_shape(leaf.shape, source)
        tensors.setdefault(source.name, rng.standard_normal(shape).astype(np.float32))
    monkeypatch.setattr(convert_clip, "read_tensors", lambda path: tensors)
    file = tmp_path / "average.pth"
    file.write_bytes(b"weights")
    return file, tensors


def test_a_preset_of_its_sizes_can_be_chosen(tmp_path, checkpoint, monkeypatch):
    other = dataclasses.replace(CONFIG, preprocessing=Preprocessing(32))
    monkeypatch.setitem(PRESETS, "other_pixels", other)
    choice = Choice("other_pixels")
    conversion = convert_clip.convert_checkpoint(checkpoint[0], tmp_path / "model", choice=choice)
    assert conversion.card.preset == "other_pixels"
    with pytest.raises(CheckpointMismatch, match="choose --preset of average .*, other_pixels"):
        convert_clip.convert_checkpoint(checkpoint[0], tmp_path / "model", choice=Choice("RN50"))


def test_a_converted_model_embeds_regions(tmp_path, checkpoint):
    """A region of one colour has that colour's embedding, with the model's own mean and std."""
    file, tensors = checkpoint
    convert_clip.convert_checkpoint(file, tmp_path / "model")
    card = load_card(tmp_path / "model")
    assert card.architecture == CONFIG and card.preset == "average"

    model = regionclip_jax.load(tmp_path / "model", short_side=64, max_long_side=64)
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = (255, 0, 51), (0, 204, 0)
    found = model.encode_regions(image, np.array([[8, 8, 24, 24], [40, 8, 56, 48]]))
    colours = np.array([[1, -1, -0.6], [-1, 0.6, -1]])
    expected = colours @ tensors["visual.average.weight"].T + tensors["visual.average.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    (probabilities,) = model.classify(found[:1], ["red", "green"])
    assert np.isfinite(probabilities).all()
