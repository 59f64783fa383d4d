"""Counter-based random numbers: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

Plain torch on int64, bit-exact with Triton's `tl.philox` on int32 counters and with `tl.uint_to_uniform_float`, so that
the torch sampler and a Triton kernel use the same noise. One call yields the words of four neighbouring token ids:

    key      (low, high) halves of the stream key, a hash of (seed, choice)
    counter  (token id // 4, position, 0, 0);  word `token id % 4` of the output belongs to the token
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_WEYL_LOW, _WEYL_HIGH = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

# The scale of tl.uint_to_uniform_float: just below 2**-31, so that the largest uniform stays below 1.
_UNIFORM_SCALE = 4.6566127342e-10
_SMALLEST_UNIFORM = 2.0**-31


def stream_key(seed: int, choice: int) -> int:
    """Return the 64-bit key of the random stream of one choice: splitmix64 over the seed, then over the choice.

    Any integer seed is taken modulo 2**64.
    """
    return _splitmix64(_splitmix64(seed & 0xFFFFFFFFFFFFFFFF) ^ (choice & _WORD))


def _splitmix64(value: int) -> int:
    """Return one output of splitmix64 (Steele, Lea, Flood 2014) from state `value`."""
    mask = 0xFFFFFFFFFFFFFFFF
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key_low: Tensor, key_high: Tensor) -> tuple[Tensor, ...]:
    """Return the four output words for each counter.

    Counters and keys are int64 tensors of values in [0, 2**32) that broadcast together; so are the four results, of
    the broadcast shape. Products wrap modulo 2**64, which preserves both of their 32-bit halves. The upper halves of
    c1 and c3 are not cleared between rounds, because each round masks the words it mixes them into.
    """
    c0, c1, c2, c3 = (word.clone(memory_format=torch.contiguous_format) for word in _spread(counter, key_low))
    product_a, product_b = torch.empty_like(c0), torch.empty_like(c0)
    for _ in range(_ROUNDS):
        torch.mul(c0, _MULTIPLIER_A, out=product_a)
        torch.mul(c2, _MULTIPLIER_B, out=product_b)
        torch.bitwise_right_shift(product_b, 32, out=c0)
        c0.bitwise_xor_(c1).bitwise_xor_(key_low).bitwise_and_(_WORD)
        torch.bitwise_right_shift(product_a, 32, out=c2)
        c2.bitwise_xor_(c3).bitwise_xor_(key_high).bitwise_and_(_WORD)
        c1, product_b = product_b, c1
        c3, product_a = product_a, c3
        key_low = (key_low + _WEYL_LOW) & _WORD
        key_high = (key_high + _WEYL_HIGH) & _WORD
    return c0, c1.bitwise_and_(_WORD), c2, c3.bitwise_and_(_WORD)


def _spread(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> list[Tensor]:
    """Return the counters as views of the shape they have in common with the key."""
    return list(torch.broadcast_tensors(*counter, key)[:4])


def exponentials(key_low: Tensor, key_high: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Return exponential noise for whole rows: float32 [R, vocab_size], from int64 keys and positions of shape [R]."""
    groups = torch.arange((vocab_size + 3) // 4, device=positions.device)
    zero = torch.zeros_like(groups)
    counter = (groups, positions[:, None], zero, zero)
    words = philox(counter, key_low[:, None], key_high[:, None])
    uniforms = torch.empty((*words[0].shape, 4), dtype=torch.float32, device=positions.device)
    for lane, word in enumerate(words):
        uniforms[..., lane] = _uniform(word)
    return _exponential(uniforms).flatten(1)[:, :vocab_size]


def exponentials_at(key_low: Tensor, key_high: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return the noise of some tokens, float32 of the shape of `ids` [n]: the same values as in `exponentials`."""
    zero = torch.zeros_like(ids)
    words = philox((ids >> 2, position, zero, zero), key_low, key_high)
    lanes = (ids & 3)[None]
    return _exponential(_uniform(torch.stack(words).gather(0, lanes)[0]))


def _uniform(words: Tensor) -> Tensor:
    """Map words to float32 in [0, 1): fold the sign, then scale, as tl.uint_to_uniform_float does."""
    return torch.minimum(words, words ^ _WORD).to(torch.float32) * _UNIFORM_SCALE


def _exponential(uniforms: Tensor) -> Tensor:
    """Return -log(1 - u), in [2**-31, 16.7). The clamp bounds how far noise can raise a token; log1p keeps float32's
    resolution near 0, where the winners' noise lies."""
    return uniforms.clamp_(min=_SMALLEST_UNIFORM).neg_().log1p_().neg_()
