"""The operations of --deterministic: the one place that chooses them, for the CPU or for CUDA.

With them a token's bits follow from the tokens before it and its position alone: neither from the step's other rows,
nor from where its prompt was cut, nor from who computed the keys and values that it reads. So what a request gets does
not depend on batches, chunks, cached prefixes, retraction and replay.
"""

import torch

from quartet.checkpoint.quantization import has_cpu_compiler
from quartet.wire.errors import ConfigError
from worker_proc.compilation import set_kernel_cache
from worker_proc.ops.interface import AttentionShape, Ops


def invariant_ops(backend: str, shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype) -> Ops:
    """Return the operations of a backend. Raises ConfigError for what they do not compute."""
    if backend == "triton":
        set_kernel_cache()
        from worker_proc.ops.invariant_triton import InvariantTritonOps

        return InvariantTritonOps(shape, dtype, kv_dtype)
    if shape.device.type != "cpu":
        raise ConfigError("--deterministic on a GPU needs our kernels: drop --attention-backend torch")
    if not has_cpu_compiler():
        raise ConfigError("--deterministic on a CPU needs kernels that llvmlite compiles: install llvmlite")
    from worker_proc.ops.invariant_cpu import InvariantCpuOps

    return InvariantCpuOps(shape, dtype, kv_dtype)
