"""Sources of records, one module per format: ``len``, ``source[index]``, a stable ``repr``."""
