"""RegionCLIP (CVPR 2022) in JAX and Flax: CLIP models that learn regions from captions."""

import importlib

__version__ = "0.2.0"


def __getattr__(name: str):
    # Lazy: device code is imported on machines without the libraries of a model directory.
    modules = {"load": "regionclip_jax.model", "push_to_hub": "regionclip_jax.hub"}
    if name in modules:
        return getattr(importlib.import_module(modules[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
