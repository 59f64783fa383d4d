"""What the kernels of linear attention share: sizes, gates, the convolution of one token. See kernels.delta_decode.

A row of the projections has, for Hk key heads of Dk and Hv value heads of Dv:

    q [Hk Dk] | k [Hk Dk] | v [Hv Dv] | gates of the outputs [Hv Dv] | update rates [Hv] | decays [Hv] | unused

q, k and v are the channels of a causal convolution. The window of a slot [width, channels] has its latest inputs, that
of position p in row p % width: a token writes to a row that no other tap of it reads.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

L2_EPS = tl.constexpr(1e-6)


class DeltaSizes(NamedTuple):
    """Hk, Hv, Dk, Dv, and the tokens that the convolution sees."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    width: int

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def constants(self) -> dict[str, int]:
        """The compile-time constants of a kernel."""
        return {
            "KEY_HEADS": self.key_heads,
            "VALUE_HEADS": self.value_heads,
            "DK": self.key_dim,
            "DV": self.value_dim,
            "WIDTH": self.width,
        }


class DeltaWeights(NamedTuple):
    """conv [width, channels], the newest token's tap last, and norm [Dv] in the model's dtype; decay [2, Hv] fp32: the
    rate, and what is added to the projection; eps of the norm."""

    conv: torch.Tensor
    decay: torch.Tensor
    norm: torch.Tensor
    eps: float


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def log_decay(decay, rate, bias):
    """-rate softplus(decay + bias), fp32."""
    x = decay.to(tl.float32) + bias
    return -rate * tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@triton.jit
def update_rate(rate):
    """The sigmoid, rounded to the model's dtype as the Hugging Face models do, fp32."""
    return (1.0 / (1.0 + tl.exp(-rate.to(tl.float32)))).to(rate.dtype).to(tl.float32)


@triton.jit
def convolved_token(
    row_ptr, window_ptr, conv_ptr, channel, mask, position, CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):
    """(silu of the convolution at `position`, its input) for some channels; the first one fp32, rounded to the model's
    dtype before and after the silu."""
    x = tl.load(row_ptr + channel, mask=mask, other=0.0)
    total = x.to(tl.float32) * tl.load(conv_ptr + (WIDTH - 1) * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    for back in tl.static_range(1, WIDTH):
        known = mask & (position >= back)
        tap = tl.load(window_ptr + ((position + WIDTH - back) % WIDTH) * CHANNELS + channel, mask=known, other=0.0)
        weight = tl.load(conv_ptr + (WIDTH - 1 - back) * CHANNELS + channel, mask=mask, other=0.0)
        total += tap.to(tl.float32) * weight.to(tl.float32)
    return silu(total.to(x.dtype).to(tl.float32)).to(x.dtype).to(tl.float32), x


def check_projections(projected: torch.Tensor, sizes: DeltaSizes, weights: DeltaWeights) -> None:
    """Raise ValueError for shapes that do not fit together."""
    gates = sizes.value_heads * (sizes.value_dim + 2)
    if projected.shape[1] < sizes.channels + gates or projected.stride(1) != 1:
        raise ValueError(f"projections {tuple(projected.shape)} with strides {projected.stride()} for {sizes}")
    shapes = tuple(weights.conv.shape), tuple(weights.decay.shape), tuple(weights.norm.shape)
    wanted = (sizes.width, sizes.channels), (2, sizes.value_heads), (sizes.value_dim,)
    if shapes != wanted or sizes.value_heads % sizes.key_heads:
        raise ValueError(f"conv, decay and norm {shapes} for {sizes}")
