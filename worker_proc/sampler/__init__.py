"""Sampling on the worker: logits of the rows that sample in a step, in; one id per row, out.

`Sampler` owns the sampling state of every slot. It must never read a clock, draw from a stateful generator or let one
row see another: an id is a function of (logits, parameters, ids so far, seed, choice, position) alone.
"""

from worker_proc.sampler.sampler import SampledRows, Sampler
from worker_proc.sampler.slots import Entering

__all__ = ["Entering", "SampledRows", "Sampler"]
