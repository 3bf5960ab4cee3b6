"""Synthetic scenes: images, captions and boxes from a seed."""
