"""Flax modules: CLIP's image and text towers, localizers, detector heads, and their functions."""
