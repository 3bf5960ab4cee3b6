"""Models for other programs: weights by the names of other libraries, and whole programs."""
