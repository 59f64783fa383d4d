"""Sampling on the worker: takes the logits of the rows that a step samples, and returns one id per row.

`Sampler` owns the sampling state of every slot. It must never read a clock, draw from a stateful generator or let one
row depend on another: an id is a function of (logits, parameters, ids so far, seed, choice, position) alone.
"""

from worker_proc.sampler.sampler import SampledRows, Sampler
from worker_proc.sampler.table import SamplingEntry

__all__ = ["SampledRows", "Sampler", "SamplingEntry"]
