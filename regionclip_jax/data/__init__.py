"""Data: sources, loading as batches of numpy arrays, prepared directories, and synthetic scenes."""
