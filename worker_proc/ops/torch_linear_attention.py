"""Linear attention by the gated delta rule in plain torch: see Ops.linear_attention. All maths of the rule is fp32.

The state S [Dk, Dv] of a value head is a map from keys to values. A token lets it fade by its decay, and moves what it
says for the token's key towards the token's value (Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024):

    S <- exp(g) S;   S <- S + k (b (v - S^T k))^T;   o = S^T q
"""

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.linear_attention import LinearSpec
from worker_proc.batch import ChunkBatch, DecodeBatch, ForwardBatch
from worker_proc.ops.interface import LinearState, LinearWeights

BLOCK = 64
"""Tokens of a prompt whose updates are solved for together."""
_L2_EPS = 1e-6


class TorchLinearAttention:
    """Args: the sizes of one rank."""

    def __init__(self, spec: LinearSpec) -> None:
        self._spec = spec

    def __call__(self, batch: ForwardBatch, projected: Tensor, state: LinearState, weights: LinearWeights) -> Tensor:
        """See Ops.linear_attention."""
        mixed, gates, rates, decays, _ = projected.split(
            (*self._spec.projections, projected.shape[1] - sum(self._spec.projections)), dim=1
        )
        rates = rates.sigmoid().float()
        decays = -weights.decay[0] * functional.softplus(decays.float() + weights.decay[1])
        out = mixed.new_empty((len(mixed), self._spec.num_value_heads, self._spec.value_dim))
        first = 0
        if batch.chunks is not None:
            first = batch.chunks.num_tokens
            self._extend(batch.chunks, mixed, rates, decays, state, weights.conv, out)
        if batch.decode is not None:
            rows = mixed[first:], rates[first:], decays[first:]
            out[first:] = self._decode(batch.decode, *rows, state, weights.conv)
        return self._gated_norm(out, gates, weights)

    def _decode(
        self, rows: DecodeBatch, mixed: Tensor, rates: Tensor, decays: Tensor, state: LinearState, conv: Tensor
    ) -> Tensor:
        """Take one token of each row into its state; returns the outputs [B, Hv, Dv]."""
        width, slots = self._spec.conv_width, rows.slots
        positions = rows.context_lens.long() - 1
        state.window[slots, positions % width] = mixed
        at = positions.unsqueeze(1) - torch.arange(width - 1, -1, -1, device=positions.device)
        taps = state.window[slots.unsqueeze(1), at % width].masked_fill_((at < 0).unsqueeze(2), 0.0)
        q, k, v = self._heads(functional.silu((taps * conv).sum(1)))
        matrix = state.matrix[slots] * decays.exp()[:, :, None, None]
        change = (v - torch.einsum("bhkv,bhk->bhv", matrix, k)) * rates.unsqueeze(2)
        matrix += k.unsqueeze(3) * change.unsqueeze(2)
        state.matrix[slots] = matrix
        return torch.einsum("bhkv,bhk->bhv", matrix, q)

    def _extend(
        self,
        chunks: ChunkBatch,
        mixed: Tensor,
        rates: Tensor,
        decays: Tensor,
        state: LinearState,
        conv: Tensor,
        out: Tensor,
    ) -> None:
        """Take the tokens of each chunk into the state of its slot, which is zero before position 0."""
        first = 0
        slots = chunks.slots.tolist()
        for slot, length, context in zip(slots, chunks.lengths, chunks.context_lengths, strict=True):
            end, start = first + length, context - length
            convolved = functional.silu(self._convolve(mixed[first:end], start, state.window[slot], conv))
            matrix = state.matrix[slot]
            if start == 0:
                matrix.zero_()
            tokens = *self._heads(convolved), decays[first:end], rates[first:end]
            for at in range(0, length, BLOCK):
                block = (one[at : at + BLOCK] for one in tokens)
                out[first + at : min(end, first + at + BLOCK)] = extend_state(matrix, *block)
            first = end

    def _convolve(self, x: Tensor, start: int, window: Tensor, conv: Tensor) -> Tensor:
        """Return the convolution [L, channels] of a chunk [L, channels] at `start`; `window` is brought up to date."""
        length, width = len(x), len(conv)
        known = torch.arange(start - width + 1, start, device=x.device)
        before = window[known % width].masked_fill_((known < 0).unsqueeze(1), 0.0)
        whole = torch.cat((before, x))
        newest = torch.arange(max(0, length - width), length, device=x.device)
        window[(start + newest) % width] = x[newest]
        return torch.stack([whole[tap : tap + length] * conv[tap] for tap in range(width)]).sum(0)

    def _heads(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k [n, Hv, Dk] of unit length, q divided by sqrt(Dk), and v [n, Hv, Dv], fp32."""
        spec, count = self._spec, len(convolved)
        keys = spec.num_key_heads * spec.key_dim
        q, k, v = convolved.float().split((keys, keys, spec.values), dim=1)
        shared = spec.num_value_heads // spec.num_key_heads
        q, k = (
            (one * torch.rsqrt(one.square().sum(-1, keepdim=True) + _L2_EPS)).repeat_interleave(shared, dim=1)
            for one in (part.reshape(count, spec.num_key_heads, spec.key_dim) for part in (q, k))
        )
        return q * spec.key_dim**-0.5, k, v.reshape(count, spec.num_value_heads, spec.value_dim)

    def _gated_norm(self, out: Tensor, gates: Tensor, weights: LinearWeights) -> Tensor:
        """Return the RMS norm of each head times silu(gate), [T, Hv Dv]; rounded as the Hugging Face models do."""
        wide = out.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + weights.eps)
        gated = (weights.norm * normed.to(out.dtype)) * functional.silu(gates.float()).view(out.shape)
        return gated.to(out.dtype).view(len(out), -1)


def extend_state(matrix: Tensor, q: Tensor, k: Tensor, v: Tensor, decays: Tensor, rates: Tensor) -> Tensor:
    """Take L tokens into the states [H, Dk, Dv] in place, and return their outputs [L, H, Dv].

    The change d_i that each token makes depends on those of the tokens before it: d_i = b_i (v_i - S_i^T k_i) with
    S_i = exp(G_i) S_0 + sum over j < i of exp(G_i - G_j) k_j d_j^T, G being the decays added up. This is a triangular
    system for d (Yang et al.: Parallelizing Linear Transformers with the Delta Rule, 2024).

    q, k [L, H, Dk] and v [L, H, Dv]; decays, which are at most 0, and rates [L, H]; all fp32."""
    q, k, v = (one.transpose(0, 1) for one in (q, k, v))
    total, rate = decays.t().cumsum(1), rates.t().unsqueeze(2)
    fade = total.exp().unsqueeze(2)
    between = (total.unsqueeze(2) - total.unsqueeze(1)).tril().exp().tril()
    system = rate * (k @ k.transpose(1, 2)) * between
    wanted = rate * (v - fade * (k @ matrix))
    change: Tensor = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    out = fade * (q @ matrix) + ((q @ k.transpose(1, 2)) * between) @ change
    matrix.mul_(fade[:, -1:])
    matrix += (k * (total[:, -1:] - total).exp().unsqueeze(2)).transpose(1, 2) @ change
    read: Tensor = out.transpose(0, 1)
    return read
