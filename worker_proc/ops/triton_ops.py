"""The operations on our Triton kernels, for CUDA: thin calls, no host sync.

KV layout of a layer: [pages, 2, Hkv, page_size, D], as the kernels take it.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from quartet.errors import ConfigError
from worker_proc.batch import ForwardBatch
from worker_proc.ops.interface import AllReduce, AttentionShape, HeadNorms, Linear, Mlp
from worker_proc.ops.linear import PlainLinear

PAGE_SIZES = (16, 32, 64, 128)


def check_kernels_package() -> None:
    """Raise ConfigError if `kernels` is somebody else's package; ours is the folder beside worker_proc."""
    import kernels

    ours = Path(__file__).resolve().parents[2] / "kernels"
    found = [Path(path).resolve() for path in kernels.__path__]
    if ours not in found or kernels.__spec__ is None or kernels.__spec__.origin is not None:
        raise ConfigError(
            f"the package `kernels` in {found[0]} hides Quartet's own: run `pip uninstall kernels` in this environment"
        )


class TritonMlp:
    """Gated MLP: one fused linear, one activation kernel."""

    def __init__(self, activation: ModuleType, gate_up: Tensor, down: Tensor, all_reduce: AllReduce | None) -> None:
        self._activation = activation
        self._gate_up = gate_up
        self.down = PlainLinear(down, None, all_reduce)

    def hidden(self, x: Tensor) -> Tensor:
        """Return silu(x G^T) * (x U^T)."""
        return self._activation.silu_mul(functional.linear(x, self._gate_up))


class TritonOps:
    """See Ops. Args: the attention's shape, its cos_sin on the CUDA device."""

    name = "triton"

    def __init__(self, shape: AttentionShape) -> None:
        if shape.page_size not in PAGE_SIZES:
            raise ConfigError(f"page_size {shape.page_size}: the triton backend takes 16, 32, 64 or 128")
        check_kernels_package()
        from kernels import activation, norm, paged_decode, paged_extend, rope_kv

        self._shape = shape
        self._activation = activation
        self._norm = norm
        self._decode = paged_decode.paged_decode
        self._extend = paged_extend.paged_extend
        self._rope = rope_kv.rope_and_write_kv

    def linear(self, weight: Tensor, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> Linear:
        """See Ops.linear."""
        return PlainLinear(weight, bias, all_reduce)

    def mlp(self, gate_up: Tensor, down: Tensor, all_reduce: AllReduce | None = None) -> Mlp:
        """See Ops.mlp."""
        return TritonMlp(self._activation, gate_up, down, all_reduce)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm."""
        return self._norm.rms_norm(x, weight, eps)

    def add_norm(
        self, linear: Linear, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops.add_norm."""
        return self._norm.add_rms_norm(linear(x), residual, weight, eps)

    def allocate_kv(self, num_layers: int, num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv; [num_pages, 2, Hkv, page_size, D]."""
        shape = self._shape
        size = (num_pages, 2, shape.num_kv_heads, shape.page_size, shape.head_dim)
        return [torch.zeros(size, dtype=dtype, device=shape.cos_sin.device) for _ in range(num_layers)]

    def plan(self, batch: ForwardBatch) -> ForwardBatch:
        """The batch has all that the kernels need."""
        return batch

    def attention(self, plan: ForwardBatch, qkv: Tensor, kv: Tensor, norms: HeadNorms | None) -> Tensor:
        """See Ops.attention: one launch for the chunks, one for the decode rows."""
        shape = self._shape
        heads = qkv.view(-1, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim)
        q, k, v = heads.split((shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1)
        query = self._rope(
            q,
            k,
            v,
            shape.cos_sin,
            plan.positions,
            plan.slot_mapping,
            kv,
            q_norm=None if norms is None else norms.q,
            k_norm=None if norms is None else norms.k,
            eps=1e-6 if norms is None else norms.eps,
        )
        parts: list[Tensor] = []
        at = 0
        if plan.chunks is not None:
            chunks, at = plan.chunks, plan.chunks.num_tokens
            longest = max(chunks.lengths)
            table, lens = chunks.page_table, chunks.context_lens
            parts.append(self._extend(query[:at], kv, table, chunks.cu_q, lens, shape.scale, max_q_len=longest))
        if plan.decode is not None:
            decode = plan.decode
            parts.append(self._decode(query[at:], kv, decode.page_table, decode.context_lens, shape.scale))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return attended.view(plan.num_tokens, -1)
