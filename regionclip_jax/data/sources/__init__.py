"""Sources of records, one format a file: ``len``, ``source[index]``, a stable ``repr``."""
