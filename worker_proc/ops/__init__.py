"""The device operations behind one interface: torch (the CPU, and the reference everywhere) and Triton kernels."""
