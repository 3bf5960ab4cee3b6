"""Formats of the files that pass between jobs: writing, reading and validation."""
