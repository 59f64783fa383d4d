"""Linear attention by the gated delta rule, token by token in float64: what every implementation is compared with."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def delta_reference(
    projected: Tensor, sizes: Any, conv: Tensor, decay: Tensor, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the outputs [L, Hv Dv] and the last state [Hv, Dk, Dv] of one sequence from its first token on, float64.

    `projected` [L, n] as LayerTensors.qkv makes it; `sizes` are Hk, Hv, Dk, Dv and the width of the convolution."""
    key_heads, heads, key_dim, value_dim, width = sizes
    keys, values = key_heads * key_dim, heads * value_dim
    channels = 2 * keys + values
    wide, decay = projected.double(), decay.double()
    mixed, gates = wide[:, :channels], wide[:, channels : channels + values]
    rates, decays = wide[:, channels + values :][:, : 2 * heads].chunk(2, dim=1)
    padded = torch.cat((mixed.new_zeros((width - 1, channels)), mixed))
    state, outs = wide.new_zeros((heads, key_dim, value_dim)), []
    for token in range(len(mixed)):
        q, k, v = functional.silu((padded[token : token + width] * conv.double()).sum(0)).split((keys, keys, values))
        q, k = (part.view(key_heads, key_dim).repeat_interleave(heads // key_heads, dim=0) for part in (q, k))
        q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
        state = state * (-decay[0] * functional.softplus(decays[token] + decay[1])).exp()[:, None, None]
        known = (state * k[:, :, None]).sum(1)
        change = (v.view(heads, value_dim) - known) * rates[token].sigmoid()[:, None]
        state = state + k[:, :, None] * change[:, None, :]
        out = (state * q[:, :, None]).sum(1) / key_dim**0.5
        normed = out * (out.square().mean(-1, keepdim=True) + eps).rsqrt() * norm.double()
        outs.append((normed * functional.silu(gates[token].view(heads, value_dim))).flatten())
    return torch.stack(outs), state
