"""The draw on the CPU: each row is narrowed to the tokens its filters keep before noise is generated for them.

Returns the same ids as `draw.draw_rows`, which documents the rules. E is at least 2**-31 and below 16.7, so a token
with z < _MIN_SCALED_LOGIT cannot win against the largest and has no mass: it is dropped first.
"""

import math

import torch
from torch import Tensor

from worker_proc.sampler.draw import argmax_rows, weight_masses
from worker_proc.sampler.philox import exponentials, exponentials_at
from worker_proc.sampler.table import SlotParams

_MIN_SCALED_LOGIT = -28.5
_TOP_P_WIDTHS = (256, 4096)
_WORD = 0xFFFFFFFF


def draw_rows_on_cpu(
    logits: Tensor, largest: list[float], slot_params: list[SlotParams], positions: list[int]
) -> list[int]:
    """Draw one id from each row of `logits` [R, V] float32 on the CPU, whose maxima are `largest` and finite."""
    chosen = [0] * len(slot_params)
    narrow: list[tuple[int, Tensor, Tensor]] = []
    for row, params in enumerate(slot_params):
        ids, weights = _candidates((logits[row] - largest[row]) / params.temperature, params)
        if ids is None or 4 * ids.shape[0] >= logits.shape[1]:
            noise = _whole_row_noise(params, positions[row], logits.shape[1])
            weights = weights / (noise if ids is None else noise[ids])
            winner = int(argmax_rows(weights[None])[0])
            chosen[row] = winner if ids is None else int(ids[winner])
        else:
            narrow.append((row, ids, weights))
    if narrow:
        for (row, ids, weights), noise in zip(narrow, _narrow_noise(narrow, slot_params, positions), strict=True):
            chosen[row] = int(ids[(weights / noise).argmax()])
    return chosen


def _whole_row_noise(params: SlotParams, position: int, vocab_size: int) -> Tensor:
    key_low, key_high = torch.tensor([params.key & _WORD]), torch.tensor([params.key >> 32])
    return exponentials(key_low, key_high, torch.tensor([position]), vocab_size)[0]


def _narrow_noise(
    narrow: list[tuple[int, Tensor, Tensor]], slot_params: list[SlotParams], positions: list[int]
) -> tuple[Tensor, ...]:
    """Return the noise of the candidates of several rows, generated in one call."""
    counts = [ids.shape[0] for _, ids, _ in narrow]
    words = [(slot_params[row].key & _WORD, slot_params[row].key >> 32, positions[row]) for row, _, _ in narrow]
    key_low, key_high, token_positions = torch.tensor(words).repeat_interleave(torch.tensor(counts), dim=0).unbind(1)
    noise = exponentials_at(key_low, key_high, token_positions, torch.cat([ids for _, ids, _ in narrow]))
    return torch.split(noise, counts)


def _candidates(scaled: Tensor, params: SlotParams) -> tuple[Tensor | None, Tensor]:
    """Return the ids kept by the filters, ascending, with their weights e; None as ids stands for the whole row."""
    if params.top_k == 0 and params.top_p >= 1.0 and params.min_p <= 0.0:
        return None, scaled.exp()
    floor = _MIN_SCALED_LOGIT
    if params.top_k > 0:
        floor = max(floor, float(scaled.topk(params.top_k).values[-1]))
    ids = (scaled >= floor).nonzero()[:, 0]
    weights = scaled[ids].exp()
    lowest = weights.new_tensor(params.min_p)
    if params.top_p < 1.0:
        lowest = torch.maximum(lowest, _top_p_threshold(weights, params.top_p))
    kept = (weights >= lowest).nonzero()[:, 0]
    return ids[kept], weights[kept]


def _top_p_threshold(weights: Tensor, top_p: float) -> Tensor:
    """Return the smallest weight that top-p keeps out of `weights` [n].

    Tries the few largest weights first, because most nuclei are small.
    """
    masses = weight_masses(weights)
    total = int(masses.sum())
    limit = min(max(math.ceil(top_p * total), 1), total)
    for width in (*_TOP_P_WIDTHS, weights.shape[0]):
        best, order = weights.topk(min(width, weights.shape[0]))
        reached = masses[order].cumsum(0)
        if int(reached[-1]) >= limit:
            return best[torch.searchsorted(reached, limit)]
    raise AssertionError("the mass of all tokens is below a part of it")
