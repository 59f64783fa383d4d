"""Stretches of a trace on which configurations are compared: each is one more draw of the traffic that it recorded."""

import random
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from quartet.simulator.request import Workload

BLOCKS = 8
"""A trace that is too short for several windows is cut into so many pieces, which come in another order each time."""


def windows(requests: Sequence[Workload], count: int, size: int, seed: int = 0) -> list[list[Workload]]:
    """Return `count` windows of at most `size` requests, each with its arrivals from 0 on.

    Of a long trace they are stretches at drawn places, one from each of `count` equal parts. Of a trace below twice
    the size each is the whole trace with its pieces in another order, the first in its own, so that no prompt comes
    twice.
    """
    rng = random.Random(seed)
    if len(requests) < 2 * size:
        return [_reordered(requests, rng if number else None) for number in range(count)]
    starts = len(requests) - size
    places = [rng.randint(starts * number // count, starts * (number + 1) // count) for number in range(count)]
    return [_from_zero(requests[place : place + size], 0.0) for place in places]


def _reordered(requests: Sequence[Workload], rng: random.Random | None) -> list[Workload]:
    bounds = [len(requests) * number // BLOCKS for number in range(BLOCKS + 1)]
    end_s = requests[-1].arrival_s
    pieces = []
    for start, end in pairwise(bounds):
        if start < end:
            until_s = requests[end].arrival_s if end < len(requests) else end_s
            pieces.append((requests[start:end], until_s - requests[start].arrival_s))
    if rng is not None:
        rng.shuffle(pieces)
    found: list[Workload] = []
    now_s = 0.0
    for piece, length_s in pieces:
        found += _from_zero(piece, now_s)
        now_s += length_s
    return found


def _from_zero(requests: Sequence[Workload], start_s: float) -> list[Workload]:
    shift_s = start_s - requests[0].arrival_s
    # Rounding may put a time below the one that the clock has reached.
    return [msgspec.structs.replace(one, arrival_s=max(start_s, one.arrival_s + shift_s)) for one in requests]
