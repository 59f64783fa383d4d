"""When to poll for the end of a step: sleep for most of the time that such a step took before, then in short steps.

A core that wakes up after milliseconds runs at a low clock with cold caches, so polling often is not free: the interval
is a fortieth of the expected time. No sleep is long, so that the end of an unusually short step is not missed by more.
"""

import time
from collections.abc import Callable, Hashable
from functools import partial

import torch

# The first poll comes at this share of the expected time, less the margin.
_FIRST_POLL_SHARE, _MARGIN_S = 0.95, 1e-4
_MIN_SLEEP_S, _MAX_SLEEP_S, _POLLS_PER_STEP = 5e-5, 8e-3, 40
# How much one outlier may change the expected time of the next step.
_MAX_GROWTH, _SHRINK = 1.25, 0.8
_OVERDUE_S = 0.05


class CompletionPoller:
    """Expected times of the steps of one device, by kind.

    Args:
        device: on CUDA, queried for errors when a step is overdue.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended_s = 0.0
        self._expected_s: dict[Hashable, float] = {}

    def note_end(self) -> None:
        """Record that a step of any kind has just ended: the device starts the next one at this time."""
        self._ended_s = time.perf_counter()

    def waiter(self, kind: Hashable) -> Callable[[Callable[[], bool]], None]:
        """Return a function that sleeps until the function passed to it returns True, for a step launched at this
        moment whose time is expected to be that of others of its kind."""
        return partial(self._sleep, kind, time.perf_counter())

    def _sleep(self, kind: Hashable, launched_s: float, is_done: Callable[[], bool]) -> None:
        """Raises torch.AcceleratorError once a kernel has failed."""
        if is_done():
            return
        began_s = max(launched_s, self._ended_s)
        expected_s = self._expected_s.get(kind, 0.0)
        due_s = began_s + _FIRST_POLL_SHARE * expected_s - _MARGIN_S
        interval_s = max(_MIN_SLEEP_S, expected_s / _POLLS_PER_STEP)
        was_missed = False
        while not is_done():
            left_s = due_s - time.perf_counter()
            was_missed |= left_s <= 0
            if left_s < -_OVERDUE_S and self._device.type == "cuda":
                torch.cuda.current_stream(self._device).query()
            time.sleep(min(max(left_s, interval_s), _MAX_SLEEP_S))
        spent_s = time.perf_counter() - began_s
        # A step that is done at the first poll may have ended long before: only its upper bound is known.
        self._expected_s[kind] = (
            min(spent_s, expected_s * _MAX_GROWTH or spent_s) if was_missed else expected_s * _SHRINK
        )
