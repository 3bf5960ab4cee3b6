"""Pure functions on arrays with fixed shapes and masks; no parameters."""
