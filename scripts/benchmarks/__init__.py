"""What ``scripts/benchmark.py`` times, one room a mode."""
