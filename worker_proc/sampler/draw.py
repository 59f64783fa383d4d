"""The draw from edited logits and its filters, for whole batches and without a host sync.

With z = (logit - max) / temperature and e = exp(z), the draw is the arg-max of e / E, where E is exponential noise: the
Gumbel-max trick with one logarithm less. Filters keep every token that ties with the last one kept:

    top-k   z >= the k-th largest z
    top-p   the mass of all larger tokens kept by top-k is below p of the mass kept by top-k
    min-p   e >= min_p

Masses are integers in units of 2**-40 of the largest: their sums do not depend on the order of addition, hence not on
the shape of the batch. `draw_cpu` computes the same ids on another path, bit for bit.
"""

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor

from worker_proc.sampler.philox import exponentials
from worker_proc.sampler.table import FLOATS, INTS, SamplingTable

_MASS_UNITS = 2.0**40
_ONE_AS_BITS = 0x3F800000
_DEVICE_KERNELS = "worker_proc.sampler.draw_triton"


def argmax_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest id of the largest value of each row, int64 [R], and the value [R]; NaN counts as largest.

    The CPU reduces in two levels, because a reduction to an index is twenty times slower than one to a value.
    """
    rows, width = logits.shape
    if logits.device.type != "cpu" or width % 128 != 0 or rows == 0:
        ids = logits.argmax(dim=1)
        return ids, logits.gather(1, ids[:, None])[:, 0]
    blocks = logits.reshape(rows, width // 128, 128)
    block = blocks.amax(dim=2).argmax(dim=1)
    values = blocks[torch.arange(rows), block]
    inner = values.argmax(dim=1)
    return block * 128 + inner, values.gather(1, inner[:, None])[:, 0]


def weight_masses(weights: Tensor) -> Tensor:
    """Return the masses of weights e in [0, 1], int64 of the same shape."""
    return (weights.to(torch.float64) * _MASS_UNITS).round().to(torch.int64)


def _kernels(device: torch.device) -> ModuleType:
    """Return the module with the device's `gumbel_argmax` and `top_p_thresholds`; imports Triton only for a GPU."""
    return sys.modules[__name__] if device.type == "cpu" else importlib.import_module(_DEVICE_KERNELS)


def draw_rows(
    logits: Tensor,
    largest: Tensor,
    table: SamplingTable,
    slots: Tensor,
    positions: Tensor,
    max_top_k: int,
    has_top_p: bool,
) -> Tensor:
    """Draw one id from each row of `logits` [R, V] float32 with maxima `largest` [R]; int64 [R].

    Never waits for a device. `max_top_k` is at least the largest top-k among the rows (0: none has one); `has_top_p`
    must be true if any row has top-p. A row whose maximum is not finite gets an arbitrary id.
    """
    kernels = _kernels(logits.device)
    floats, ints = table.floats[slots], table.ints[slots]
    scaled = (logits - largest[:, None]) / floats[:, FLOATS.temperature, None].to(torch.float32)
    weights = scaled.exp()
    if max_top_k > 0:
        top_k = ints[:, INTS.top_k]
        best = scaled.topk(max_top_k, dim=1).values
        threshold = best.gather(1, (top_k - 1).clamp_(min=0)[:, None])
        weights.masked_fill_((scaled < threshold) & (top_k > 0)[:, None], 0.0)
    lowest = floats[:, FLOATS.min_p].to(torch.float32)
    if has_top_p:
        lowest = torch.maximum(lowest, kernels.top_p_thresholds(weights, floats[:, FLOATS.top_p]))
    weights.masked_fill_(weights < lowest[:, None], 0.0)
    ids: Tensor = kernels.gumbel_argmax(weights, ints[:, INTS.key_low], ints[:, INTS.key_high], positions)
    return ids


def gumbel_argmax(weights: Tensor, key_low: Tensor, key_high: Tensor, positions: Tensor) -> Tensor:
    """Return the id with the largest weight / noise of each row of `weights` [R, V], int64 [R]."""
    return argmax_rows(weights / exponentials(key_low, key_high, positions, weights.shape[1]))[0]


def top_p_thresholds(weights: Tensor, top_p: Tensor) -> Tensor:
    """Return the smallest weight that top-p keeps in each row of `weights` [R, V], float32 [R]; 0 where `top_p` is 1.

    Bisects over the bits of the weights, which order positive floats like integers: `low` is always kept.
    """
    masses = weight_masses(weights)
    bits = weights.view(torch.int32)
    total = masses.sum(dim=1)
    limit = (top_p * total.to(torch.float64)).ceil().to(torch.int64).clamp_(min=1).minimum(total)
    low = torch.zeros_like(limit, dtype=torch.int32)
    high = torch.full_like(low, _ONE_AS_BITS + 1)
    for _ in range(_ONE_AS_BITS.bit_length()):
        middle = (low + high) // 2
        is_enough = torch.where(bits >= middle[:, None], masses, 0).sum(dim=1) >= limit
        low, high = torch.where(is_enough, middle, low), torch.where(is_enough, high, middle)
    return torch.where(top_p < 1.0, low.view(torch.float32), 0.0)
