"""Flax modules: the CLIP image towers, the text tower, and the functions only they need."""
