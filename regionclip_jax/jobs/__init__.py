"""The stories: each job is read top to bottom and contains no mathematics."""
