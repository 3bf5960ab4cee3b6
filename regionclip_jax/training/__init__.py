"""What a training run needs beside its step: optimizer, loop, metrics, guards, checkpoints."""
