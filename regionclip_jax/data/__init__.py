"""Data: sources, images, captions, canvases, and the pipeline to batches of numpy arrays."""
