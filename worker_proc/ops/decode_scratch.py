"""Scratch of decode attention at a fixed address, as CUDA graphs need it."""

from dataclasses import dataclass

from torch import Tensor

from worker_proc.slots import IntArray


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Scratch of decode attention at a fixed address, for a batch whose rows, padding included, have at most `splits`
    splits of `split_size` tokens (the smallest split), at least one each."""

    workspace: Tensor
    split_size: int
    splits: int

    def has_room(self, contexts: IntArray, rows: int) -> bool:
        """Say whether it is large enough for decode rows of these context lengths, padded to `rows`."""
        size = self.split_size
        # One sum is cheaper than the exact count and exceeds it by at most one split a row.
        if int(contexts.sum()) // size + rows <= self.splits:
            return True
        return int(((contexts + (size - 1)) // size).sum()) + rows - len(contexts) <= self.splits
