"""RegionCLIP (CVPR 2022) in JAX and Flax: CLIP models that learn regions from captions."""

__version__ = "0.1.0"
