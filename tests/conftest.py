"""Eight simulated devices, shape checks and reference arrays for all tests.

``parity.golden`` documents the origin of the arrays. Tests marked slow read files that are too
large for the repository from the folder in the environment variable REGIONCLIP_GOLDEN.
"""

import functools
import math
import os
import sys
import types
from pathlib import Path

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Fixtures for tests of several folders.
pytest_plugins = ["small_recipes"]

LARGE_GOLDEN = "REGIONCLIP_GOLDEN"

# Only this process has eight devices: commands started by tests use the devices of the machine.
# Parity is checked in float32, so accelerators may not round the inputs of matrix products.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
# ``load`` would keep programs in the folder of the person who runs the tests.
jax.config.update("jax_enable_compilation_cache", False)

settings.register_profile(
    "quick",
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("quick")


def _check_functions(function, **_):
    # Dataclasses are not checked: jax also builds them from shapes, shardings and placeholders.
    return function if function.__name__ == "__init__" else beartype.beartype(function)


# The hook takes the typechecker as the name of an importable module.
_typechecker = types.ModuleType("device_side_typechecker")
_typechecker.check = _check_functions
sys.modules[_typechecker.__name__] = _typechecker
install_import_hook(
    [f"regionclip_jax.{folder}" for folder in ("ops", "models", "losses", "steps")],
    f"{_typechecker.__name__}.check",
)


@pytest.fixture(scope="session")
def golden():
    """``golden(name)``: the arrays of ``golden/{name}.npz`` by name."""
    from parity.golden import stored

    return stored


@pytest.fixture(scope="session")
def large_golden_folder() -> Path:
    folder = os.environ.get(LARGE_GOLDEN)
    if not folder:
        pytest.skip(f"{LARGE_GOLDEN} does not name the folder of the large golden files")
    return Path(folder)


@pytest.fixture(scope="session")
def large_golden(large_golden_folder):
    """``large_golden(name)``: the arrays of ``{name}.npz`` in the folder of large files."""
    from parity.golden import load

    return lambda name: load(name, large_golden_folder)


@pytest.fixture(scope="session")
def reference_localizer():
    """``reference_localizer(arch)``: config and variables of the reference's random localizer."""
    from parity.golden import localizer

    return localizer


@pytest.fixture(scope="session")
def relative_error():
    """Largest absolute difference divided by the largest absolute value of the second array."""
    from parity.comparison import relative_error

    return relative_error


@pytest.fixture(scope="session")
def nano_variables(nano_configs):
    """``nano_variables(name, seed)``: random variables of one of ``nano_configs``.

    NumPy draws them, as compiling the initialisers of the modules takes longer than most tests.
    """
    from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, unflatten

    def draw(rng, path: str, shape: tuple[int, ...]):
        if path.endswith(("scale", "var")):
            return np.ones(shape)
        if path.endswith(("bias", "mean")):
            return np.zeros(shape)
        if path.endswith("logit_scale"):
            return np.log(1 / 0.07)
        return rng.standard_normal(shape) * (2 / math.prod(shape[:-1])) ** 0.5

    def variables(name: str, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)
        shapes = flatten(abstract_variables(nano_configs[name]))
        leaves = {path: draw(rng, path, leaf.shape) for path, leaf in shapes.items()}
        return unflatten({path: jnp.asarray(x, jnp.float32) for path, x in leaves.items()})

    return functools.cache(variables)


@pytest.fixture(scope="session")
def nano_localizer():
    """Card and random variables of a pyramid localizer whose proposals are its anchors."""
    from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
    from regionclip_jax.artifacts.model_card import LocalizerCard
    from regionclip_jax.models.localizer import LocalizerConfig

    config = LocalizerConfig(
        blocks=(1, 1, 1, 1), stem_width=4, bottleneck_width=4, features=8, pyramid_channels=8
    )
    rng = np.random.default_rng(0)

    def value(leaf):
        fan_in = math.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 1
        return (rng.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    variables = jax.tree.map(value, abstract_localizer(config))
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    head = variables["params"]["head"]
    head["deltas"] = jax.tree.map(np.zeros_like, head["deltas"])
    return LocalizerCard(config, {"file": "rpn.pth"}), variables


@pytest.fixture(scope="session")
def nano_directory(tmp_path_factory, nano_variables, nano_configs, nano_localizer) -> Path:
    """Model directory of the nano ResNet with a localizer."""
    from regionclip_jax.artifacts.localizer_checkpoint import save_localizer
    from regionclip_jax.artifacts.model_card import ModelCard
    from regionclip_jax.artifacts.model_checkpoint import save_model

    directory = tmp_path_factory.mktemp("models") / "nano"
    save_model(directory, nano_variables("resnet"), ModelCard(nano_configs["resnet"], {}))
    card, variables = nano_localizer
    save_localizer(directory, variables, card)
    return directory


@pytest.fixture(scope="session")
def nano_configs():
    """Two architectures for training in tests: a ResNet and a ViT for images of 64 pixels."""
    from regionclip_jax.models.modified_resnet import ResNetConfig
    from regionclip_jax.models.text_transformer import TextConfig
    from regionclip_jax.models.towers import CLIPConfig
    from regionclip_jax.models.vision_transformer import ViTConfig
    from regionclip_jax.structures import Preprocessing

    text = TextConfig(vocab_size=600, context_length=16, width=64, heads=1, layers=1)
    images = {
        "resnet": ResNetConfig(layers=(1, 1, 1, 1), width=8, heads=4),
        "vit": ViTConfig(patch_size=16, layers=2, width=64, heads=2),
    }
    return {
        name: CLIPConfig(image, text, Preprocessing(64), embed_dim=32)
        for name, image in images.items()
    }


@pytest.fixture(scope="session")
def read_events():
    """``read_events(directory)``: tag to [(step, value)], as TensorBoard shows a directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    def read(directory) -> dict:
        unlimited = {"scalars": 0, "images": 0, "tensors": 0}
        accumulator = EventAccumulator(str(directory), size_guidance=unlimited)
        accumulator.Reload()
        tags = accumulator.Tags()
        events = {
            tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]
        }
        for tag in tags["images"]:
            events[tag] = [(e.step, e.encoded_image_string) for e in accumulator.Images(tag)]
        for tag in tags["tensors"]:
            values = ((e.step, make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag))
            events[tag] = list(values)
        return events

    return read
