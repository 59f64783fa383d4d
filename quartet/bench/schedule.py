"""When requests are sent: all at once, or at a rate with a given burstiness."""

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Return the times of `count` requests in seconds, ascending.

    Args:
        rate: requests a second; infinite: all at once.
        burstiness: shape of the gamma distribution of the gaps. 1 is a Poisson process, less comes in bursts, more is
            steadier, infinity is a fixed interval.

    As in vLLM's client the times are stretched so that the last request comes after exactly `count` / `rate` seconds,
    and the same seed gives the same times there.
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.full(count, 1 / rate)
    if not math.isinf(burstiness):
        gaps = np.random.RandomState(seed).gamma(burstiness, 1 / (rate * burstiness), count)
    times = np.cumsum(gaps)
    return [float(time_s) for time_s in times * (count / rate / times[-1])]
