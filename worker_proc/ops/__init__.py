"""The device operations behind one interface: in torch (for the CPU, and as the reference) and as Triton kernels."""
