"""The mesh of devices, the shardings of a model, and transfers between host and device."""
