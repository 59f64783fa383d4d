"""Sampling of plain rows on the device by one fused call, inside a CUDA graph or outside of it.

All rows of a step pass through it; rows that need more (`Sampler.unfused_rows`) are sampled again and replaced.
"""

from torch import Tensor

from worker_proc.sampler import Sampler
from worker_proc.sampler.table import FLOATS, INTS


class FusedSampler:
    """Args: the sampler, for its tables; `last_token` [slots + 1] int64, where the next step reads its ids."""

    def __init__(self, sampler: Sampler, last_token: Tensor) -> None:
        # Imported here, so that a worker without a GPU loads no Triton.
        from kernels.fused_sample import fused_sample

        self._run = fused_sample
        self._table = sampler.table
        self._last_token = last_token

    def sample(self, logits: Tensor, slots: Tensor, positions: Tensor, output: Tensor, sequence: Tensor) -> None:
        """Sample a token for each row of `logits` [R, V], keep it as its slot's newest and write it to
        `output[sequence % len(output)]`, -1 for rows whose logits are not finite. See kernels.fused_sample."""
        self._run(
            logits,
            slots,
            positions,
            self._table.floats,
            self._table.ints,
            self._last_token,
            output,
            sequence,
            temperature=FLOATS.temperature,
            key_low=INTS.key_low,
            key_high=INTS.key_high,
            is_greedy=INTS.is_greedy,
        )
