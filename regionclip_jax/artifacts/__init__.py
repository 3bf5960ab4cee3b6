"""Formats of the files that pass between jobs: how they are written, read, checked and refused."""
