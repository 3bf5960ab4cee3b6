"""Modes of ``scripts/benchmark.py``, one module per mode."""
