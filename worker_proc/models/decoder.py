"""The decoder-only transformer: the families of quartet.checkpoint.families differ only by their spec.

Plain objects instead of nn.Module: a step is a short list of calls into `Ops`, and nothing is ever trained.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quartet.checkpoint.spec import ModelSpec
from worker_proc.batch import ForwardBatch
from worker_proc.models.attention_shape import heads_of
from worker_proc.ops.interface import (
    AllReduce,
    Branch,
    Collectives,
    HeadNorms,
    LayerCache,
    Linear,
    LinearState,
    LinearWeights,
    Ops,
)
from worker_proc.weights.quantized import embedded
from worker_proc.weights.tensors import LayerTensors, ModelTensors, Shard

# A layer over this many tokens may take long on a CPU; each layer then counts as progress.
_PROGRESS_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, its linears packed for the device. `head_norms` act on each q and k head, `projection_norms` on all q
    heads and all k heads together. `linear` is there if the layer has linear attention. `before` and `after` are the
    norms of what goes into attention and MLP and of what they give; `kind` is the index of one of spec.kinds, and
    `qkv_size` the numbers of its q, k and v. The residual is multiplied by `scale` at its end."""

    before: tuple[Tensor, Tensor] | None
    after: tuple[Tensor, Tensor] | None
    qkv: Linear
    linear: LinearWeights | None
    head_norms: HeadNorms | None
    projection_norms: HeadNorms | None
    output: Linear
    sinks: Tensor | None
    mlp: Branch
    kind: int
    qkv_size: int
    scale: Tensor | None


class Decoder:
    """A loaded model on one device.

    Args:
        spec: its shape.
        ops: the kernels to use.
        tensors: the weights of `shard`, on the device in the model's dtype; consumed layer by layer.
        shard: the part of heads and MLP that this rank holds.
        collectives: of the ranks; None with one rank.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        tensors: ModelTensors,
        shard: Shard,
        collectives: Collectives | None = None,
    ) -> None:
        if shard.size > 1 and collectives is None:
            raise ValueError(f"{shard.size} ranks need collectives")
        if shard.size > 1 and spec.linear is not None:
            raise ValueError("linear attention runs on one rank")
        if shard.size > 1 and spec.qk_norm == "projection":
            raise ValueError("q and k are normalised over all heads, which one rank does not have")
        self._spec = spec
        self._ops = ops
        self._shard = shard
        self._dtype = tensors.final_norm.dtype
        all_reduce = None if collectives is None else collectives.all_reduce
        self._broadcast = None if collectives is None else collectives.broadcast
        self._embedding = ops.loaded(tensors.embedding)
        # The residual is kept divided by residual_scale, so that attention and MLP are added to it as they are: a norm
        # of it is the same, with a smaller eps.
        # The scale is rounded as the model's numbers are, which Gemma was trained with.
        scale = float(torch.tensor(spec.embedding_scale, dtype=self._dtype))
        self._embedding_scale = scale / spec.residual_scale
        self._residual_eps = spec.norm_eps / spec.residual_scale**2
        self._layers = [self._pack(i, layer, all_reduce) for i, layer in enumerate(tensors.layers)]
        self._final_norm = tensors.final_norm
        if spec.logits_divisor != 1.0:
            self._final_norm = tensors.final_norm / spec.logits_divisor
        self._lm_head = ops.linear(self._embedding if tensors.lm_head is None else tensors.lm_head)

    def forward(
        self,
        batch: ForwardBatch,
        caches: list[LayerCache],
        progress: Callable[[], None],
        logits: Tensor | None = None,
        on_hidden: Callable[[Tensor], None] | None = None,
    ) -> Tensor | None:
        """Run the batch's tokens, write their KV, and return the sampled rows' logits [R, vocab], None without any.

        The result is `logits` if that is given, otherwise a fresh tensor. `on_hidden` is called with what the logits
        of any token are made from, [T, hidden]."""
        hidden = self._hidden(batch, caches, progress)
        if on_hidden is not None:
            on_hidden(hidden)
        if not len(batch.sample_rows):
            return None
        sampled = hidden if batch.is_all_sampled else hidden.index_select(0, batch.sample_rows)
        if logits is None:
            return self.logits(sampled)
        self._lm_head.write(sampled, logits)
        return self._capped(logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [R, vocab] of rows [R, hidden]."""
        return self._capped(self._lm_head(hidden))

    def _capped(self, logits: Tensor) -> Tensor:
        """Return the logits, which are changed in place where the model squashes them."""
        cap = self._spec.final_softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits

    def _hidden(self, batch: ForwardBatch, caches: list[LayerCache], progress: Callable[[], None]) -> Tensor:
        kinds = self._ops.plan(batch)
        residual = embedded(self._embedding, batch.input_ids, self._dtype)
        if self._embedding_scale != 1.0:
            residual = residual * self._embedding_scale
        if self._broadcast is not None:
            # Rank 0 alone samples, so only its ids of the rows that decode are right.
            residual = self._broadcast(residual)
        plans = [kinds[layer.kind] for layer in self._layers]
        is_long = batch.num_tokens >= _PROGRESS_TOKENS
        after_layer = progress if is_long else _do_nothing
        run = self._run_norms_before if self._spec.norms == "before" else self._run_norms_after
        return run(residual, plans, caches, after_layer)

    def _run_norms_before(
        self, residual: Tensor, plans: list[Any], caches: list[LayerCache], after_layer: Callable[[], None]
    ) -> Tensor:
        """Return the final norm of the residual [T, hidden] after all layers: r + f(norm(r)), twice a layer."""
        ops, eps = self._ops, self._residual_eps
        norms = [layer.before for layer in self._layers if layer.before is not None]
        normed = ops.rms_norm(residual, norms[0][0], eps)
        following = [attention_norm for attention_norm, _ in norms[1:]] + [self._final_norm]
        for layer, plan, cache, own, next_norm in zip(self._layers, plans, caches, norms, following, strict=True):
            attended = self._attend(layer, plan, normed, cache)
            normed, residual = ops.add_norm(layer.output, attended, residual, own[1], eps)
            normed, residual = ops.add_norm(layer.mlp, normed, residual, next_norm, eps)
            after_layer()
        return normed

    def _run_norms_after(
        self, residual: Tensor, plans: list[Any], caches: list[LayerCache], after_layer: Callable[[], None]
    ) -> Tensor:
        """Return the final norm of the residual [T, hidden] after all layers: r + norm(f(r)) or r + norm(f(norm(r))),
        twice a layer."""
        ops, eps = self._ops, self._spec.norm_eps
        for layer, plan, cache in zip(self._layers, plans, caches, strict=True):
            assert layer.after is not None
            x = residual if layer.before is None else ops.rms_norm(residual, layer.before[0], eps)
            attended = layer.output(self._attend(layer, plan, x, cache))
            residual = residual + ops.rms_norm(attended, layer.after[0], eps)
            x = residual if layer.before is None else ops.rms_norm(residual, layer.before[1], eps)
            residual = residual + ops.rms_norm(layer.mlp(x), layer.after[1], eps)
            if layer.scale is not None:
                residual = residual * layer.scale
            after_layer()
        return ops.rms_norm(residual, self._final_norm, eps)

    def _attend(self, layer: Layer, plan: Any, x: Tensor, cache: LayerCache) -> Tensor:
        ops, projected, norms = self._ops, layer.qkv(x), layer.projection_norms
        if layer.linear is not None:
            assert isinstance(cache, LinearState)
            return ops.linear_attention(plan, projected, cache, layer.linear)
        assert isinstance(cache, Tensor)
        qkv, gate = projected[:, : layer.qkv_size], projected[:, layer.qkv_size :]
        if norms is not None:
            q, k, _ = qkv.tensor_split((len(norms.q), len(norms.q) + len(norms.k)), dim=-1)
            q.copy_(ops.rms_norm(q, norms.q, norms.eps))
            k.copy_(ops.rms_norm(k, norms.k, norms.eps))
        attended = ops.attention(plan, qkv, cache, layer.head_norms, layer.sinks)
        return ops.gate(attended, gate) if self._spec.is_gated else attended

    def allocate_caches(
        self, num_pages: Sequence[int], num_states: int, dtype: torch.dtype, kv_dtype: torch.dtype
    ) -> tuple[list[LayerCache], LinearState | None]:
        """Return the empty cache of each layer, `num_pages` of its page group of keys and values in `kv_dtype`, the
        dummy page included, or `num_states` states, the one for padding included; and those of all layers with states
        in one."""
        groups, kinds = self.groups(), [layer.kind for layer in self._layers]
        pools = [
            iter(self._ops.allocate_kv([kind for kind, own in zip(kinds, groups, strict=True) if own == at], *given))
            for at, given in enumerate((pages, kv_dtype) for pages in num_pages)
        ]
        if None not in groups:
            return [next(pools[group]) for group in groups if group is not None], None
        states = self._ops.allocate_states(groups.count(None), num_states, dtype)
        own = map(LinearState, states.window, states.matrix)
        return [next(own) if group is None else next(pools[group]) for group in groups], states

    def groups(self) -> list[int | None]:
        """Return the page group of each layer; None for one that keeps a state."""
        kinds, groups = self._spec.kinds, self._spec.page_groups
        return [groups.index(kinds[layer.kind].window) if layer.linear is None else None for layer in self._layers]

    def first_layers(self) -> "Decoder":
        """Return a decoder of the first layer of each kind, on the same weights: it launches every kernel this one
        does."""
        short, kinds = copy.copy(self), dict[tuple[bool, bool, int], Layer]()
        for index, layer in enumerate(self._layers):
            kinds.setdefault((self._spec.experts_of(index) is None, layer.linear is None, layer.kind), layer)
        short._layers = [*kinds.values()]
        return short

    def _pack(self, index: int, layer: LayerTensors, all_reduce: AllReduce | None) -> Layer:
        ops, spec, norms = self._ops, self._spec, None
        if layer.q_norm is not None and layer.k_norm is not None:
            # A norm without a weight multiplies by one.
            v_norm = torch.ones_like(layer.k_norm) if spec.has_value_norm else None
            norms = HeadNorms(layer.q_norm, layer.k_norm, v_norm, spec.norm_eps)
        linear = None
        if layer.linear is not None:
            linear = LinearWeights(layer.linear.conv, layer.linear.decay, layer.linear.norm, spec.norm_eps)
        return Layer(
            before=_pair(layer.attention_norm, layer.mlp_norm),
            after=_pair(layer.after_attention, layer.after_mlp),
            qkv=ops.linear(layer.qkv, layer.qkv_bias),
            linear=linear,
            head_norms=norms if spec.qk_norm == "head" else None,
            projection_norms=norms if spec.qk_norm == "projection" else None,
            output=ops.linear(layer.output, layer.output_bias, all_reduce),
            sinks=layer.sinks,
            mlp=self._pack_mlp(index, layer, all_reduce),
            kind=spec.kinds.index(spec.attention[index]),
            qkv_size=heads_of(spec.attention[index].heads, self._shard).size,
            scale=layer.scale,
        )

    def _pack_mlp(self, index: int, layer: LayerTensors, all_reduce: AllReduce | None) -> Branch:
        ops, experts, dense = self._ops, self._spec.experts_of(index), None
        has_experts = experts is not None and layer.experts is not None
        if layer.gate_up is not None and layer.down is not None:
            dense = ops.mlp(layer.gate_up, layer.down, None if has_experts else all_reduce, self._spec.activation)
        if experts is not None and layer.experts is not None:
            return ops.experts(experts, layer.experts, dense, all_reduce)
        if dense is None:
            raise ValueError(f"layer {index} has neither an MLP nor experts")
        return dense


def _pair(attention: Tensor | None, mlp: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if attention is None or mlp is None else (attention, mlp)


def _do_nothing() -> None:
    pass
