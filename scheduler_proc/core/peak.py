"""The peak of a batch's KV when every request grows to its end: LightLLM's admission test (scheduling rules S4, U4)."""

from collections.abc import Iterable


def peak_tokens(requests: Iterable[tuple[int, int]]) -> int:
    """Return the most tokens held at once by requests given as (held, may still add).

    Sorted by what they may add, most first: when the i-th of them ends, i requests have grown by what it added.
    """
    peak = held = 0
    for count, (tokens, growth) in enumerate(sorted(requests, key=lambda pair: -pair[1]), 1):
        held += tokens
        peak = max(peak, growth * count + held)
    return peak
