"""Training around the step: optimizer, loop, metrics, guards, checkpoints."""
