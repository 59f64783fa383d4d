"""The draw of plain rows on the device: one call for what most sequences ask for, inside a CUDA graph or out of it.

Every row of a step goes through here; rows that ask for more (`Sampler.special_rows`) are sampled again and replaced.
"""

from torch import Tensor

from worker_proc.sampler import Sampler
from worker_proc.sampler.slots import FLOATS, INTS


class Picker:
    """Args: the sampler, for its tables; `last_token` [slots + 1] int64, where the next step looks for ids."""

    def __init__(self, sampler: Sampler, last_token: Tensor) -> None:
        # Here, so that a worker without a GPU loads no Triton.
        from kernels.pick_tokens import pick_tokens

        self._pick = pick_tokens
        self._table = sampler.table
        self._last_token = last_token

    def pick(self, logits: Tensor, slots: Tensor, positions: Tensor, post: Tensor, turn: Tensor) -> None:
        """Pick a token for each row of `logits` [R, V], keep it as its slot's newest and write it to
        `post[turn % len(post)]`; -1 there for rows whose logits are not finite. See kernels.pick_tokens."""
        self._pick(
            logits,
            slots,
            positions,
            self._table.floats,
            self._table.ints,
            self._last_token,
            post,
            turn,
            temperature=FLOATS.temperature,
            key_low=INTS.key_low,
            key_high=INTS.key_high,
            is_greedy=INTS.is_greedy,
        )
