"""The operations of --deterministic on our Triton kernels: those of TritonOps, but for linears and attention.

A token's bits follow from the tokens before it and its position alone. Linears are those of kernels.invariant_linear.
Prompts and decode rows attend by one kernel, a decode row as a prompt's last token, and no row's keys are divided among
programs: tiles of keys stand at absolute positions (kernels.paged_extend). So no groups of shared prefixes are formed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.families import Activation
from quartet.wire.errors import ConfigError
from worker_proc.batch import ChunkBatch, ForwardBatch
from worker_proc.ops.decode_scratch import DecodeScratch
from worker_proc.ops.interface import AllReduce, AttentionShape, Branch, HeadNorms, LinearState, LinearWeights
from worker_proc.ops.triton_ops import TritonOps, TritonPlan
from worker_proc.weights.quantized import QuantizedWeight, Weight
from worker_proc.weights.tensors import ExpertTensors

_NO_LIMIT = 1 << 30
_CHECKED_DEPTH = 2048


class InvariantTritonOps:
    """See Ops. Args: the attention's shape, its tables on the CUDA device; the dtypes of the model and of the KV
    cache."""

    name = "triton"

    def __init__(self, shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
        self._plain = TritonOps(shape, dtype, None, kv_dtype, cuts_keys=False)
        from kernels import activation, invariant_linear, norm

        self._activations = {"silu": activation.silu_mul, "gelu_tanh": activation.gelu_mul}
        self._product, self._add_norm = invariant_linear.invariant_linear, norm.add_rms_norm
        self._dtype, self._device = dtype, shape.device
        if self._device.type == "cuda":
            check_tiles(self._product, invariant_linear.tiles_of(dtype), dtype, self._device)

    def loaded(self, weight: Weight) -> Tensor:
        """See Ops.loaded. Raises ConfigError for weights that are computed from their codes."""
        loaded = self._plain.loaded(weight)
        if isinstance(loaded, QuantizedWeight):
            raise ConfigError(f"--deterministic on a GPU computes no linears in {loaded.kind}: drop it")
        return loaded

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> "_Linear":
        """See Ops.linear."""
        return _Linear(self._product, self.loaded(weight), bias, all_reduce)

    def mlp(
        self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None, activation: Activation = "silu"
    ) -> "_Mlp":
        """See Ops.mlp."""
        return _Mlp(self.linear(gate_up), self._activations[activation], self.linear(down, None, all_reduce))

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> NoReturn:
        """Not computed; see check_settings."""
        _refuse("experts")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm."""
        return self._plain.rms_norm(x, weight, eps)

    def add_norm(
        self, branch: Branch, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops.add_norm."""
        assert isinstance(branch, _Linear | _Mlp)
        found: tuple[Tensor, Tensor] = self._add_norm(branch.partial_sums(x), residual, weight, eps)
        return found

    def allocate_kv(self, kinds: Sequence[int], num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv."""
        return self._plain.allocate_kv(kinds, num_pages, dtype)

    def plan(self, batch: ForwardBatch) -> Sequence[TritonPlan]:
        """See Ops.plan."""
        groups = [_as_chunks(batch.of_group(group)) for group in range(len(batch.windows) + 1)]
        windows = tuple(
            replace(own, chunk_table=None if chunks is None else chunks.page_table, decode_table=None)
            for own, chunks in zip(batch.windows, groups[1:], strict=True)
        )
        plans = self._plain.plan(replace(batch, chunks=groups[0], decode=None, windows=windows))
        # Rows of padding attend to nothing.
        sizes = {(batch.num_tokens, plan.kind.heads.num_heads, plan.kind.heads.head_dim) for plan in plans}
        outs = {size[1:]: torch.zeros(size, dtype=self._dtype, device=self._device) for size in sizes}
        return [replace(plan, out=outs[plan.kind.heads.num_heads, plan.kind.heads.head_dim]) for plan in plans]

    def prefix_costs(self) -> None:
        """See TritonOps.prefix_costs: there is no attention over shared prefixes."""
        return

    def decode_scratch(self, rows: int, max_pages: int) -> DecodeScratch:
        """Return the scratch of decode batches of up to `rows` rows, which need none."""
        return DecodeScratch(torch.empty(0, device=self._device), _NO_LIMIT, rows)

    def attention(
        self, plan: TritonPlan, qkv: Tensor, kv: Tensor, norms: HeadNorms | None, sinks: Tensor | None = None
    ) -> Tensor:
        """See Ops.attention."""
        return self._plain.attention(plan, qkv, kv, norms, sinks)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """See Ops.gate."""
        return self._plain.gate(x, gate)

    def allocate_states(self, num_layers: int, num_rows: int, dtype: torch.dtype) -> NoReturn:
        """Not computed; see check_settings."""
        _refuse("linear attention")

    def linear_attention(
        self, plan: TritonPlan, projected: Tensor, state: LinearState, weights: LinearWeights
    ) -> NoReturn:
        """Not computed; see check_settings."""
        _refuse("linear attention")


class _Linear:
    """See Linear. Args: kernels.invariant_linear; weight [out, in], bias [out], all_reduce over ranks."""

    def __init__(
        self, product: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, all_reduce: AllReduce | None
    ) -> None:
        self._product, self._weight, self._bias, self._all_reduce = product, weight, bias, all_reduce

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        y = self._product(x, self._weight, self._bias)
        return y if self._all_reduce is None else self._all_reduce(y)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return residual + self(x)

    def write(self, x: Tensor, out: Tensor) -> None:
        """See Linear."""
        self._product(x, self._weight, out=out)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return x W^T + b [T, out], or its fp32 partial sums [n, T, out] for kernels.norm.add_rms_norm."""
        if self._all_reduce is not None or self._bias is not None:
            return self(x)
        return self._product(x, self._weight, partial=True)


class _Mlp:
    """Gated MLP of two linears; see Branch."""

    def __init__(self, gate_up: _Linear, activate: Callable[[Tensor], Tensor], down: _Linear) -> None:
        self._gate_up, self._activate, self._down = gate_up, activate, down

    def __call__(self, x: Tensor) -> Tensor:
        """See Branch."""
        return self._down(self._activate(self._gate_up(x)))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return self._down.add(self._activate(self._gate_up(x)), residual)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return the output, or its partial sums; see _Linear."""
        return self._down.partial_sums(self._activate(self._gate_up(x)))


def check_tiles(product: Callable[..., Tensor], tiles: Sequence[Any], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ConfigError unless all tiles of `product` give the same bits on this card, which no documentation of its
    tensor cores promises."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, _CHECKED_DEPTH, generator=generator).to(device, dtype) for rows in (64, 256))
    first, *others = (product(x, weight, tile=tile) for tile in tiles)
    if not all(torch.equal(first, other) for other in others):
        raise ConfigError("--deterministic: on this card a product's bits depend on its tile: drop it")


def _as_chunks(batch: ForwardBatch) -> ChunkBatch | None:
    """Return the batch's chunks, and behind them its decode rows as chunks of one token. No host sync."""
    chunks, decode = batch.chunks, batch.decode
    if decode is None:
        return chunks
    # Rows of no context come last: they have no token.
    counts = (decode.context_lens > 0).cumsum(0, dtype=torch.int32)
    if chunks is None:
        cu_q = functional.pad(counts, (1, 0))
        given = [1], cu_q, decode.context_lens, decode.page_table, decode.slots
    else:
        cu_q = torch.cat((chunks.cu_q, chunks.cu_q[-1] + counts))
        lens = torch.cat((chunks.context_lens, decode.context_lens))
        tables = chunks.page_table, decode.page_table
        width = max(table.shape[1] for table in tables)
        table = torch.cat([functional.pad(one, (0, width - one.shape[1])) for one in tables])
        given = chunks.lengths, cu_q, lens, table, chunks.slots
    lengths, cu_q, lens, table, slots = given
    return ChunkBatch(lengths, [], cu_q, lens, table, slots, batch.num_tokens)


def _refuse(what: str) -> NoReturn:
    raise ConfigError(f"--deterministic does not work with {what}: drop it")
