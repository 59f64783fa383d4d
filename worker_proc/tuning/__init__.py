"""Measures launch parameters of the kernels on the card that is there, for `quartet tune`."""
