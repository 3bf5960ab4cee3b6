"""Read records: their types, sources with one module per format, and counts of skipped ones."""
