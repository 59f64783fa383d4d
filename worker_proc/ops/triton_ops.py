"""The operations on our Triton kernels, for CUDA: thin calls, no host sync.

KV layout of a layer: [pages, 2, Hkv, page_size, D], as the kernels require.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.families import Activation
from quartet.checkpoint.linear_attention import LinearSpec
from quartet.sizing.model_bytes import TRITON_SCRATCH_BYTES
from quartet.wire.config import TRITON_PAGE_SIZES
from quartet.wire.errors import ConfigError
from worker_proc.batch import ChunkBatch, DecodeBatch, ForwardBatch
from worker_proc.ops.decode_scratch import DecodeScratch
from worker_proc.ops.interface import (
    AllReduce,
    AttentionShape,
    Branch,
    HeadNorms,
    LayerKind,
    Linear,
    LinearState,
    LinearWeights,
    zero_states,
)
from worker_proc.ops.quantized import DequantizingLinear, QuantizedMlp
from worker_proc.ops.skinny import SkinnyLinear, SkinnyMlp
from worker_proc.ops.triton_experts import TritonExperts
from worker_proc.ops.triton_linear_attention import TritonLinearAttention
from worker_proc.ops.triton_linears import TritonLinears
from worker_proc.weights.quantized import Weight
from worker_proc.weights.tensors import ExpertTensors

# What a GPU of 4 TB/s reads while a kernel more is launched and waited for, about 6 us.
PREFIX_STEP_BYTES = 24 << 20


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """A step for the layers of one kind: the batch with its attention partitioned, and rows of the kind's table. The
    attention of each layer fills `out` [T, H, D], if it is given, or else a fresh tensor."""

    batch: ForwardBatch
    kind: LayerKind
    positions: Tensor
    out: Tensor | None = None


def check_kernels_package() -> None:
    """Raise ConfigError unless `kernels` is Quartet's folder beside worker_proc, rather than another package."""
    import kernels

    ours = Path(__file__).resolve().parents[2] / "kernels"
    found = [Path(path).resolve() for path in kernels.__path__]
    if ours not in found or kernels.__spec__ is None or kernels.__spec__.origin is not None:
        raise ConfigError(
            f"the package `kernels` in {found[0]} hides Quartet's own: run `pip uninstall kernels` in this environment"
        )


class TritonOps:
    """See Ops. Args: the attention's shape, its tables on the CUDA device; the model's dtype, the sizes of linear
    attention if the model has such layers, the dtype of the KV cache, which None says is the model's, and whether the
    keys of a few rows of a prompt are divided among programs."""

    name = "triton"

    def __init__(
        self,
        shape: AttentionShape,
        dtype: torch.dtype,
        linear: LinearSpec | None = None,
        kv_dtype: torch.dtype | None = None,
        cuts_keys: bool = True,
    ) -> None:
        if shape.page_size not in TRITON_PAGE_SIZES:
            raise ConfigError(f"page_size {shape.page_size}: the triton backend takes one of {TRITON_PAGE_SIZES}")
        check_kernels_package()
        from kernels import (
            activation,
            decode_partition,
            expert_linear,
            expert_routing,
            expert_tiles,
            mxfp4,
            norm,
            paged_decode,
            paged_extend,
            paged_tile,
            prefix_decode,
            rope_kv,
        )

        self._shape, self._dtype, self._kv_dtype, self._cuts_keys = shape, dtype, kv_dtype or dtype, cuts_keys
        self._linear_spec, self._linear = linear, None if linear is None else TritonLinearAttention(linear)
        self._sigmoid_mul = activation.sigmoid_mul
        self._norm, self._linears = norm, TritonLinears(dtype)
        self._experts = expert_routing, expert_linear, expert_tiles, mxfp4
        self._paged_decode = paged_decode
        self._partition_decode = decode_partition.partition_decode
        self._default_split_size = decode_partition.default_split_size
        self._paged_extend, self._prefix_decode = paged_extend, prefix_decode
        self._variant = paged_tile.Variant
        self._rope = rope_kv.rope_and_write_kv

    def loaded(self, weight: Weight) -> Weight:
        """See Ops.loaded."""
        return self._linears.loaded(weight)

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> Linear:
        """See Ops.linear."""
        return self._linears.linear(weight, bias, all_reduce)

    def mlp(
        self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None, activation: Activation = "silu"
    ) -> Branch:
        """See Ops.mlp."""
        return self._linears.mlp(gate_up, down, all_reduce, activation)

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> Branch:
        """See Ops.experts."""
        return TritonExperts(self._experts, spec, tensors, shared, all_reduce)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm."""
        return self._norm.rms_norm(x, weight, eps)

    def add_norm(
        self, branch: Branch, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops.add_norm."""
        assert isinstance(branch, SkinnyLinear | SkinnyMlp | DequantizingLinear | QuantizedMlp | TritonExperts)
        return self._norm.add_rms_norm(branch.partial_sums(x), residual, weight, eps)

    def allocate_kv(self, kinds: Sequence[int], num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv; [num_pages, 2, Hkv, page_size, D]."""
        shape, heads = self._shape, [self._shape.kinds[kind].heads for kind in kinds]
        sizes = [(num_pages, 2, one.num_kv_heads, shape.page_size, one.head_dim) for one in heads]
        return [torch.zeros(size, dtype=dtype, device=shape.device) for size in sizes]

    def plan(self, batch: ForwardBatch) -> list[TritonPlan]:
        """See Ops.plan: partitions the attention of chunks and of decode rows over programs; the batch holds
        everything else."""
        kinds = self._shape.kinds
        groups = {(kind.heads, kind.window): batch.of_group(kind.group) for kind in kinds}
        batches = {key: self._partitioned(own, *key) for key, own in groups.items()}
        return [TritonPlan(batches[kind.heads, kind.window], kind, self._positions(batch, kind)) for kind in kinds]

    def _positions(self, batch: ForwardBatch, kind: LayerKind) -> Tensor:
        return batch.positions if kind.is_rotated else torch.zeros_like(batch.positions)

    def _partitioned(self, batch: ForwardBatch, heads: Heads, window: int) -> ForwardBatch:
        chunks, decode = self._plan_chunks(batch.chunks, heads, window), self._plan_decode(batch.decode, heads, window)
        return replace(batch, chunks=chunks, decode=decode)

    def _plan_chunks(self, chunks: ChunkBatch | None, heads: Heads, window: int) -> ChunkBatch | None:
        if chunks is None:
            return None
        shape, longest = self._shape, max(chunks.lengths)
        lengths = {"total": chunks.num_tokens, "max_q_len": longest}
        partition = self._paged_extend.partition_extend(
            chunks.cu_q,
            chunks.context_lens,
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_dim,
            self._dtype,
            **lengths,
            kv_dtype=self._kv_dtype,
            window=window,
            is_plain=not (window or shape.softcap or shape.has_sinks),
            cut=self._cuts_keys,
        )
        return replace(chunks, partition=partition)

    def _plan_decode(self, decode: DecodeBatch | None, heads: Heads, window: int) -> DecodeBatch | None:
        if decode is None:
            return None
        own = heads.num_kv_heads, heads.num_heads // heads.num_kv_heads, heads.head_dim, self._kv_dtype
        has_padding = decode.first_row is not None
        partition = self._partition_decode(decode.context_lens, *own, skip_empty=has_padding, window=window)
        prefixes = decode.prefixes
        if prefixes is not None:
            own = heads.num_heads, heads.num_kv_heads, heads.head_dim, self._dtype
            prefixes = replace(prefixes, items=self._prefix_decode.partition_prefixes(prefixes.shared, *own))
        return replace(decode, partition=partition, prefixes=prefixes)

    def prefix_costs(self) -> tuple[int, int] | None:
        """Return what attention over shared prefixes costs besides, in tokens read by one layer: a row's partial
        results, and a step's further kernel. None where there is no such attention: for KV in another dtype than the
        model's, and where a layer has a window, a softcap, sinks or heads of its own."""
        shape, heads = self._shape, self._shape.kinds[0].heads
        is_plain = not (shape.softcap or shape.has_sinks)
        is_plain &= all(kind.heads == heads and not kind.window for kind in shape.kinds)
        if not is_plain or self._kv_dtype != self._dtype:
            return None
        token_bytes = 2 * heads.kv_size * self._dtype.itemsize
        # Two partial results of each head, in fp32, written and read.
        row_bytes = 4 * heads.query_size * 4
        return row_bytes // token_bytes, PREFIX_STEP_BYTES // token_bytes

    def decode_scratch(self, rows: int, max_pages: int) -> DecodeScratch:
        """Return scratch for decode batches of up to `rows` rows, at most about TRITON_SCRATCH_BYTES."""
        shape, heads = self._shape, [kind.heads for kind in self._shape.kinds]
        split = min(self._default_split_size(one.num_heads // one.num_kv_heads) for one in heads)
        numel = max(self._paged_decode.decode_workspace_numel(1, one.num_heads, one.head_dim) for one in heads)
        limit = max(rows, TRITON_SCRATCH_BYTES // (4 * numel))
        splits = min(rows * -(-max_pages * shape.page_size // split), limit)
        workspace = torch.empty(splits * numel, dtype=torch.float32, device=shape.device)
        return DecodeScratch(workspace, split, splits)

    def attention(
        self, plan: TritonPlan, qkv: Tensor, kv: Tensor, norms: HeadNorms | None, sinks: Tensor | None = None
    ) -> Tensor:
        """See Ops.attention: one launch for the chunks, one for the decode rows.

        The metadata is ready in the sense of kernels.pdl: the embedding, which is launched without PDL, follows it."""
        shape, batch = self._shape, plan.batch
        variant = self._variant(plan.kind.window, shape.softcap, sinks)
        own = plan.kind.heads
        heads = qkv.unflatten(1, (-1, own.head_dim))
        q, k = heads[:, : own.num_heads], heads[:, own.num_heads : own.num_heads + own.num_kv_heads]
        # The last heads: those of the keys where there are no others.
        v = heads[:, -own.num_kv_heads :]
        query = self._rope(
            q,
            k,
            v,
            plan.kind.cos_sin,
            plan.positions,
            batch.slot_mapping,
            kv,
            q_norm=None if norms is None else norms.q,
            k_norm=None if norms is None else norms.k,
            v_norm=None if norms is None else norms.v,
            eps=1e-6 if norms is None else norms.eps,
            metadata_ready=True,
        )
        out, at = query.new_empty(query.shape) if plan.out is None else plan.out, 0
        if batch.chunks is not None:
            chunks, at = batch.chunks, batch.chunks.num_tokens
            longest, table, lens = max(chunks.lengths), chunks.page_table, chunks.context_lens
            rows = query[:at], kv, table, chunks.cu_q, lens
            self._paged_extend.paged_extend(
                *rows, shape.scale, max_q_len=longest, out=out[:at], partition=chunks.partition, variant=variant
            )
        if batch.decode is not None:
            decode, parts = batch.decode, None
            at = at if decode.first_row is None else 0
            if decode.prefixes is not None:
                prefixes = decode.prefixes
                given = prefixes.page_table, prefixes.shared, prefixes.items
                parts = self._prefix_decode.prefix_decode(query[at:], kv, *given, shape.scale)
            self._paged_decode.paged_decode(
                query[at:],
                kv,
                decode.page_table,
                decode.context_lens,
                shape.scale,
                workspace=decode.workspace,
                partition=decode.partition,
                metadata_ready=True,
                out=out[at:],
                first_row=decode.first_row,
                prefixes=parts,
                variant=variant,
            )
        return out.view(batch.num_tokens, -1)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """See Ops.gate."""
        return self._sigmoid_mul(x, gate)

    def allocate_states(self, num_layers: int, num_rows: int, dtype: torch.dtype) -> LinearState:
        """See Ops.allocate_states."""
        assert self._linear_spec is not None
        return zero_states(self._linear_spec, num_rows, dtype, self._shape.device, num_layers)

    def linear_attention(
        self, plan: TritonPlan, projected: Tensor, state: LinearState, weights: LinearWeights
    ) -> Tensor:
        """See Ops.linear_attention. The metadata is ready, as in `attention`."""
        assert self._linear is not None
        return self._linear(plan.batch, projected, state, weights)
