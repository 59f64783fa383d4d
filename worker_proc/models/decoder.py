"""The decoder-only transformer: Llama, Mistral, Qwen2 and Qwen3 differ only by their spec.

Plain objects instead of nn.Module: a step is a short list of calls into `Ops`, and nothing is ever trained.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.spec import ModelSpec
from worker_proc.batch import ForwardBatch
from worker_proc.ops.interface import HeadNorms, Linear, Mlp, Ops
from worker_proc.weights.tensors import LayerTensors, ModelTensors, Shard

# A layer over this many tokens may take long on a CPU; each layer then counts as progress.
_PROGRESS_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, its linears packed for the device."""

    input_norm: Tensor
    qkv: Linear
    head_norms: HeadNorms | None
    output: Linear
    post_norm: Tensor
    mlp: Mlp


class Decoder:
    """A loaded model on one device.

    Args:
        spec: its shape.
        ops: the kernels to use.
        tensors: the weights of `shard`, on the device in the model's dtype; consumed layer by layer.
        shard: the part of heads and MLP that this rank holds.
        all_reduce: sums [T, hidden] over ranks; None with one rank.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        tensors: ModelTensors,
        shard: Shard,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if shard.size > 1 and all_reduce is None:
            raise ValueError(f"{shard.size} ranks need an all_reduce")
        self._spec = spec
        self._ops = ops
        self._embedding = tensors.embedding
        self._layers = [self._pack(layer, all_reduce) for layer in tensors.layers]
        self._final_norm = tensors.final_norm
        self._lm_head = ops.linear(tensors.embedding if tensors.lm_head is None else tensors.lm_head)

    def forward(
        self,
        batch: ForwardBatch,
        kv_cache: list[Tensor],
        progress: Callable[[], None],
        logits: Tensor | None = None,
        on_hidden: Callable[[Tensor], None] | None = None,
    ) -> Tensor | None:
        """Run the batch's tokens, write their KV, and return the sampled rows' logits [R, vocab], None without any.

        The result is `logits` if that is given, otherwise a fresh tensor. `on_hidden` is called with what the logits
        of any token are made from, [T, hidden]."""
        hidden = self._hidden(batch, kv_cache, progress)
        if on_hidden is not None:
            on_hidden(hidden)
        if not len(batch.sample_rows):
            return None
        sampled = hidden if batch.is_all_sampled else hidden.index_select(0, batch.sample_rows)
        if logits is None:
            return self._lm_head(sampled)
        self._lm_head.write(sampled, logits)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [R, vocab] of rows [R, hidden]."""
        return self._lm_head(hidden)

    def _hidden(self, batch: ForwardBatch, kv_cache: list[Tensor], progress: Callable[[], None]) -> Tensor:
        ops, eps = self._ops, self._spec.norm_eps
        plan = ops.plan(batch)
        residual = functional.embedding(batch.input_ids, self._embedding)
        normed = ops.rms_norm(residual, self._layers[0].input_norm, eps)
        following = [layer.input_norm for layer in self._layers[1:]] + [self._final_norm]
        is_long = batch.num_tokens >= _PROGRESS_TOKENS
        for layer, kv, next_norm in zip(self._layers, kv_cache, following, strict=True):
            attended = ops.attention(plan, layer.qkv(normed), kv, layer.head_norms)
            normed, residual = ops.add_norm(layer.output, attended, residual, layer.post_norm, eps)
            hidden = layer.mlp.hidden(normed)
            normed, residual = ops.add_norm(layer.mlp.down, hidden, residual, next_norm, eps)
            if is_long:
                progress()
        return normed

    def first_layer(self) -> "Decoder":
        """Return a decoder of the first layer alone, on the same weights: it launches every kernel this one does."""
        short = copy.copy(self)
        short._layers = self._layers[:1]
        return short

    def _pack(self, layer: LayerTensors, all_reduce: Callable[[Tensor], Tensor] | None) -> Layer:
        ops = self._ops
        norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norms = HeadNorms(layer.q_norm, layer.k_norm, self._spec.norm_eps)
        return Layer(
            input_norm=layer.input_norm,
            qkv=ops.linear(layer.qkv, layer.qkv_bias),
            head_norms=norms,
            output=ops.linear(layer.output, layer.output_bias, all_reduce),
            post_norm=layer.post_norm,
            mlp=ops.mlp(layer.gate_up, layer.down, all_reduce),
        )
