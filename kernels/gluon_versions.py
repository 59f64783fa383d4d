"""Names of Gluon that differ between the versions of Triton that the kernels are compiled by (3.6 to 3.8)."""

from triton.experimental.gluon import language as gl

# Waits for all threads of a program. Triton 3.7 has renamed it.
thread_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
