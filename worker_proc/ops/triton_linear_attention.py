"""Linear attention by the gated delta rule on our Triton kernels: see Ops.linear_attention."""

from torch import Tensor

from quartet.checkpoint.linear_attention import LinearSpec
from worker_proc.batch import ForwardBatch
from worker_proc.ops.interface import LinearState, LinearWeights


class TritonLinearAttention:
    """Args: the sizes of one rank. Imports Triton."""

    def __init__(self, spec: LinearSpec) -> None:
        from kernels import delta_decode, delta_prefill, delta_rule

        self._decode, self._prefill = delta_decode.delta_decode, delta_prefill.delta_prefill
        self._make_weights = delta_rule.DeltaWeights
        heads = spec.num_key_heads, spec.num_value_heads
        self._spec, self._sizes = spec, delta_rule.DeltaSizes(*heads, spec.key_dim, spec.value_dim, spec.conv_width)

    def __call__(self, batch: ForwardBatch, projected: Tensor, state: LinearState, weights: LinearWeights) -> Tensor:
        """See Ops.linear_attention: four launches for the chunks, one for the decode rows."""
        own = self._make_weights(weights.conv, weights.decay, weights.norm, weights.eps)
        out, first = projected.new_empty((len(projected), self._spec.values)), 0
        states = state.window, state.matrix
        if batch.chunks is not None:
            chunks, first = batch.chunks, batch.chunks.num_tokens
            rows = chunks.cu_q, chunks.slots, chunks.context_lens
            self._prefill(projected[:first], *states, *rows, self._sizes, own, out[:first])
        if batch.decode is not None:
            decode = batch.decode
            first = first if decode.first_row is None else 0
            one_token = projected[first:], *states, decode.slots, decode.context_lens
            self._decode(*one_token, self._sizes, own, out[first:], first_row=decode.first_row)
        return out
