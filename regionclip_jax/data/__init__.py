"""From files to batches of numpy arrays: sources, pictures, captions, canvases, the pipeline."""
