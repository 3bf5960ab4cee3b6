"""Arrays of the reference, and its random weights as variables of this package.

microsoft/RegionCLIP at 4b8513b and openai/CLIP computed the arrays (``golden/*.npz``) in float32
on a CPU. ``golden/make_weights.py`` rebuilds their weights from the names and shapes in
``golden/shapes_*.json``.
"""

import functools
import json
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, unflatten
from regionclip_jax.conversion import localizer_keys
from regionclip_jax.conversion.architecture import infer_localizer_config
from regionclip_jax.conversion.clip_keys import Layout, origin
from regionclip_jax.conversion.layouts import build_variables, to_parameter
from regionclip_jax.conversion.regionclip_keys import to_openai
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.towers import CLIPConfig

GOLDEN = Path(__file__).parents[1] / "golden"

Arrays = dict[str, np.ndarray]


def load(name: str, folder: Path = GOLDEN) -> Arrays:
    """Return the arrays of ``{folder}/{name}.npz`` by name."""
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def stored(name: str) -> Arrays:
    """Return the arrays of ``load`` from the folder of the repository, read-only."""
    arrays = load(name)
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


@functools.cache
def _make_weights() -> dict:
    return runpy.run_path(str(GOLDEN / "make_weights.py"))


def make_state_dict(arch: str, folder: Path = GOLDEN) -> Arrays:
    """Return the reference's random weights of ``shapes_{arch}.json`` by reference name."""
    return _make_weights()["make_state_dict"](arch, root=folder)


def make_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return one of the reference's random weights by reference name."""
    return _make_weights()["make_tensor"](name, shape)


def clip_tensors(arch: str, tower: str = "student", folder: Path = GOLDEN) -> Arrays:
    """Return the reference's random weights of a CLIP model by OpenAI's names."""
    renamed, _ = to_openai(make_state_dict(arch, folder), tower)
    # The text tower of RegionCLIP has no logit scale.
    return {"logit_scale": np.float32(math.log(1 / 0.07)), **renamed}


def to_variables(tensors: Arrays, config: CLIPConfig, dtype=jnp.float32) -> dict:
    """Return the variables of a model, without the towers missing in ``tensors``."""
    leaves = {}
    for path, leaf in flatten(abstract_variables(config)).items():
        source = origin(path.partition("/")[2], len(leaf.shape))
        if source.name in tensors:
            leaves[path] = jnp.asarray(to_parameter(tensors[source.name], source), dtype)
            assert leaves[path].shape == leaf.shape, path
    return unflatten(leaves)


def clip_variables(
    arch: str,
    config: CLIPConfig,
    tower: str = "student",
    folder: Path = GOLDEN,
    dtype=jnp.float32,
) -> dict:
    """Return the reference's random weights as variables of the model ``config``."""
    return to_variables(clip_tensors(arch, tower, folder), config, dtype)


def localizer(arch: str, folder: Path = GOLDEN) -> tuple[LocalizerConfig, dict]:
    """Return config and variables of the reference's random localizer."""
    tensors, _ = localizer_keys.to_bare_names(make_state_dict(arch, folder), arch)
    config = infer_localizer_config(tensors, arch)
    variables, _ = build_variables(
        abstract_localizer(config),
        localizer_keys.origins(config),
        tensors,
        where=arch,
        remedy="",
    )
    return config, jax.tree.map(jnp.asarray, variables)


BOX_PREDICTOR = "roi_heads.box_predictor."


def box_predictor(arch: str, folder: Path = GOLDEN, dtype=jnp.float32) -> tuple[jax.Array, dict]:
    """Return class embeddings and box head parameters of the reference's random weights."""
    shapes = json.loads((folder / f"shapes_{arch}.json").read_text())

    def tensor(name):
        name = BOX_PREDICTOR + name
        return jnp.asarray(make_tensor(name, tuple(shapes[name])), dtype)

    head = {"deltas": {"kernel": tensor("bbox_pred.weight").T, "bias": tensor("bbox_pred.bias")}}
    return tensor("cls_score.weight"), head


def to_torch_layout(path: str, gradient) -> tuple[str, np.ndarray]:
    """Return the reference's name of a parameter, and its gradient in the reference's layout."""
    if path.startswith("box_head/deltas/"):
        leaf = path.rpartition("/")[2]
        name = BOX_PREDICTOR + "bbox_pred." + {"kernel": "weight"}.get(leaf, leaf)
        return name, np.asarray(gradient).T
    source = origin(path, gradient.ndim)
    if source.layout is Layout.CONVOLUTION:
        gradient = gradient.transpose(3, 2, 0, 1)
    elif source.layout is Layout.LINEAR:
        gradient = gradient.T
    return "backbone." + source.name.removeprefix("visual."), np.asarray(gradient)


def as_stored(gradient: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the stored elements of a gradient: every n-th element of large gradients."""
    if gradient.shape == expected.shape:
        return gradient
    return gradient.reshape(-1)[:: max(1, gradient.size // 4096)][: expected.size]
