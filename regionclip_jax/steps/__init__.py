"""Device programs of one step each."""
