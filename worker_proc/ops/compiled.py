"""Norm, rotation, gate and decode attention by compiled kernels, in float32 on the CPU: calls with tensors."""

import torch
from torch import Tensor

from kernels.cpu_decode import DecodeArguments, DecodeShape, decode_module
from kernels.cpu_elementwise import (
    GatedArguments,
    NormArguments,
    RotateArguments,
    gated_module,
    norm_module,
    rotate_module,
)
from kernels.cpu_jit import CompiledFunction
from quartet.checkpoint.attention_kinds import Heads

_NO_WINDOW = 1 << 62


class CompiledNorm:
    """RMS norm over a last dimension whose size is a multiple of LANES."""

    def __init__(self) -> None:
        self._norm = CompiledFunction(norm_module(), "rms_norm")
        self._arguments = NormArguments()

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the norm of x."""
        x = x.contiguous()
        y = torch.empty_like(x)
        arguments, size = self._arguments, weight.shape[0]
        arguments.x, arguments.weight, arguments.y = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        arguments.tokens, arguments.size, arguments.eps = x.numel() // size, size, eps
        self._norm(arguments)
        return y


class CompiledGate:
    """The gated half of an MLP with SiLU."""

    def __init__(self) -> None:
        self._gated = CompiledFunction(gated_module(), "gated")

    def __call__(self, x: Tensor) -> Tensor:
        """Return silu(gate) * up [T, n] of x [T, 2 n], the gate first; n is a multiple of LANES."""
        x = x.contiguous()
        tokens, size = x.shape[0], x.shape[1] // 2
        y = x.new_empty((tokens, size))
        self._gated(GatedArguments(x.data_ptr(), y.data_ptr(), tokens, size))
        return y


class CompiledAttention:
    """Args: the heads of layers, the tokens of a page, the factor on q K^T, and the bits of keys and values: 32, or of
    `decode` 16."""

    def __init__(self, heads: Heads, page_size: int, scale: float, kv_bits: int = 32) -> None:
        per_kv = heads.num_heads // heads.num_kv_heads
        form = DecodeShape(heads.head_dim, heads.num_kv_heads, per_kv, page_size, kv_bits)
        self._decode = CompiledFunction(decode_module(form), "decode")
        self._decode_arguments = DecodeArguments(scale=scale)
        self._rotate = CompiledFunction(rotate_module(), "rotate")
        self._rotate_arguments = RotateArguments(
            head_dim=heads.head_dim, rotated=heads.num_heads + heads.num_kv_heads, first_kv=heads.query_size
        )

    def rotate_and_write(self, qkv: Tensor, angles: Tensor, kv: Tensor, slots: Tensor) -> None:
        """Turn the q and k heads of qkv [T, width], rows of a wider tensor, and write its k and v to slots [T] of kv.

        `angles` are [T, D], cosines, then sines, or [1, D] for all tokens."""
        arguments = self._rotate_arguments
        tokens, width = qkv.shape
        arguments.qkv, arguments.kv, arguments.slots = qkv.data_ptr(), kv.data_ptr(), slots.data_ptr()
        arguments.angles, arguments.angle_stride = angles.data_ptr(), angles.shape[1] if len(angles) > 1 else 0
        arguments.tokens, arguments.width, arguments.stride = tokens, width, qkv.stride(0)
        self._rotate(arguments)

    def decode(self, query: Tensor, kv: Tensor, table: Tensor, lengths: Tensor, window: int) -> Tensor:
        """Return the attention [B, H * D] of one token a row: `query` [B, H * D], rows of a wider tensor; `table`
        [B, pages] and `lengths` [B], both int64; `window` as in LayerKind."""
        rows = query.shape[0]
        out, arguments = query.new_empty(query.shape), self._decode_arguments
        arguments.next_part, arguments.rows = 0, rows
        arguments.query, arguments.query_stride = query.data_ptr(), query.stride(0)
        arguments.kv, arguments.out = kv.data_ptr(), out.data_ptr()
        arguments.table, arguments.table_stride = table.data_ptr(), table.stride(0)
        arguments.lengths, arguments.window = lengths.data_ptr(), window or _NO_WINDOW
        self._decode(arguments, torch.get_num_threads())
        return out
