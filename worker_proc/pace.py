"""How long to sleep for a step whose end nobody announces: most of what its like took before, then beat by beat.

A core that is woken after milliseconds runs with a low clock and cold caches, so looking often is not free: a beat is a
fortieth of a step. No sleep is long, so that a step much shorter than its like is not overslept by more.
"""

import time
from collections.abc import Callable, Hashable
from functools import partial

import torch

_SHARE, _MARGIN_S = 0.95, 1e-4
_SHORTEST_S, _LONGEST_S, _BEATS = 5e-5, 8e-3, 40
# What one odd step may change of what is expected of the next.
_GROWS, _SHRINKS = 1.25, 0.8
_LATE_S = 0.05


class Pace:
    """What is known of the steps of one device.

    Args:
        device: asked, on CUDA, whether it has failed, when a step is late.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended_s = 0.0
        self._took_s: dict[Hashable, float] = {}

    def note_end(self) -> None:
        """Say that a step of whatever kind has just ended: the next one on the device begins with that."""
        self._ended_s = time.perf_counter()

    def waiting_for(self, kind: Hashable) -> Callable[[Callable[[], bool]], None]:
        """Return what sleeps until a function returns True, for a step launched now, about as long as others of its
        kind."""
        return partial(self._sleep, kind, time.perf_counter())

    def _sleep(self, kind: Hashable, launched_s: float, is_done: Callable[[], bool]) -> None:
        """Raises torch.AcceleratorError once a kernel has failed."""
        if is_done():
            return
        began_s = max(launched_s, self._ended_s)
        took_s = self._took_s.get(kind, 0.0)
        due_s, beat_s = began_s + _SHARE * took_s - _MARGIN_S, max(_SHORTEST_S, took_s / _BEATS)
        was_missed = False
        while not is_done():
            left_s = due_s - time.perf_counter()
            was_missed |= left_s <= 0
            if left_s < -_LATE_S and self._device.type == "cuda":
                torch.cuda.current_stream(self._device).query()
            time.sleep(min(max(left_s, beat_s), _LONGEST_S))
        spent_s = time.perf_counter() - began_s
        # Found at the first look when it was due, it may have been there for long.
        self._took_s[kind] = min(spent_s, took_s * _GROWS or spent_s) if was_missed else took_s * _SHRINKS
