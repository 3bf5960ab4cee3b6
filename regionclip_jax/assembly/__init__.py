"""Objects from settings: models, optimizers, sources, streams, and trainings of these."""
