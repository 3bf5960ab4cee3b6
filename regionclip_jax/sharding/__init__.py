"""The mesh of devices, and the one place where host arrays become device arrays."""
