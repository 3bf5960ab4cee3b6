"""Compute detection metrics from predictions, in numpy on the host."""
