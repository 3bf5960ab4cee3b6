"""Comparisons with the arrays of the PyTorch reference, callable with and without pytest.

Import with ``tests`` on the path. ``parity.families.FAMILIES`` lists all comparisons.
"""
