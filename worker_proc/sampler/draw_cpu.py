"""The draw on the CPU: each row is narrowed to the tokens its filters keep before noise is made for them.

Same ids as `draw.draw_rows`, where the rules are written down. E is at least 2**-31 and below 16.7, so a token with
z < _HOPELESS can neither win against the largest nor does it have a mass: it is left out from the start.
"""

import math

import torch
from torch import Tensor

from worker_proc.sampler.draw import argmax_rows, weight_masses
from worker_proc.sampler.philox import exponentials, exponentials_at
from worker_proc.sampler.slots import SlotPlan

_HOPELESS = -28.5
_NUCLEUS_GUESSES = (256, 4096)
_WORD = 0xFFFFFFFF


def draw_narrowed(logits: Tensor, largest: list[float], plans: list[SlotPlan], positions: list[int]) -> list[int]:
    """Draw one id from each row of `logits` [R, V] float32 on the CPU, whose maxima are `largest` and finite."""
    chosen = [0] * len(plans)
    narrow: list[tuple[int, Tensor, Tensor]] = []
    for row, plan in enumerate(plans):
        ids, weights = _candidates((logits[row] - largest[row]) / plan.temperature, plan)
        if ids is None or 4 * ids.shape[0] >= logits.shape[1]:
            noise = _whole_row_noise(plan, positions[row], logits.shape[1])
            weights = weights / (noise if ids is None else noise[ids])
            winner = int(argmax_rows(weights[None])[0])
            chosen[row] = winner if ids is None else int(ids[winner])
        else:
            narrow.append((row, ids, weights))
    if narrow:
        for (row, ids, weights), noise in zip(narrow, _narrow_noise(narrow, plans, positions), strict=True):
            chosen[row] = int(ids[(weights / noise).argmax()])
    return chosen


def _whole_row_noise(plan: SlotPlan, position: int, vocab_size: int) -> Tensor:
    key_low, key_high = torch.tensor([plan.key & _WORD]), torch.tensor([plan.key >> 32])
    return exponentials(key_low, key_high, torch.tensor([position]), vocab_size)[0]


def _narrow_noise(
    narrow: list[tuple[int, Tensor, Tensor]], plans: list[SlotPlan], positions: list[int]
) -> tuple[Tensor, ...]:
    """Return the noise of the candidates of several rows, made together: few numbers cost as much as one."""
    counts = [ids.shape[0] for _, ids, _ in narrow]
    words = [(plans[row].key & _WORD, plans[row].key >> 32, positions[row]) for row, _, _ in narrow]
    key_low, key_high, places = torch.tensor(words).repeat_interleave(torch.tensor(counts), dim=0).unbind(1)
    return exponentials_at(key_low, key_high, places, torch.cat([ids for _, ids, _ in narrow])).split(counts)


def _candidates(scaled: Tensor, plan: SlotPlan) -> tuple[Tensor | None, Tensor]:
    """Return the ids kept by the filters, ascending, with their weights e; ids None stands for the whole row."""
    if plan.top_k == 0 and plan.top_p >= 1.0 and plan.min_p <= 0.0:
        return None, scaled.exp()
    floor = _HOPELESS
    if plan.top_k > 0:
        floor = max(floor, float(scaled.topk(plan.top_k).values[-1]))
    ids = (scaled >= floor).nonzero()[:, 0]
    weights = scaled[ids].exp()
    lowest = weights.new_tensor(plan.min_p)
    if plan.top_p < 1.0:
        lowest = torch.maximum(lowest, _nucleus_edge(weights, plan.top_p))
    kept = (weights >= lowest).nonzero()[:, 0]
    return ids[kept], weights[kept]


def _nucleus_edge(weights: Tensor, top_p: float) -> Tensor:
    """Return the smallest weight that top-p keeps out of `weights` [n].

    Most nuclei are small: a few of the best will do.
    """
    masses = weight_masses(weights)
    total = int(masses.sum())
    limit = min(max(math.ceil(top_p * total), 1), total)
    for width in (*_NUCLEUS_GUESSES, weights.shape[0]):
        best, order = weights.topk(min(width, weights.shape[0]))
        reached = masses[order].cumsum(0)
        if int(reached[-1]) >= limit:
            return best[torch.searchsorted(reached, limit)]
    raise AssertionError("the mass of all tokens is below a part of it")
