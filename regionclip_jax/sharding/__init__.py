"""The mesh of devices, what of a model lies where, and the one crossing from host to device."""
