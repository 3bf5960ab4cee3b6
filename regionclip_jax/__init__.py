"""RegionCLIP (CVPR 2022) in JAX and Flax: CLIP models that know regions, pretrained from captions."""

__version__ = "0.1.0"
