"""Sampling parameters of every slot: a host copy to plan by, and device tables to compute with.

The device tables are indexed by slot, so that no stage has to bring anything to the host. Where they
are empty they are neutral: a slot never set is greedy and asks for nothing.
"""

from dataclasses import dataclass

import torch

from quartet.frames import SamplingParams
from worker_proc.sampler.philox import stream_key

_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """What one slot asks for, on the host. `top_k` 0, `top_p` 1 and `min_p` 0 mean no filter.

    `masked_before` is the position in the sequence from which end and stop tokens are allowed. `key` is 64 bits.
    """

    is_greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    key: int
    masked_before: int
    has_penalties: bool
    has_bias: bool
    has_mask: bool
    logprobs: int

    @property
    def is_adjusted(self) -> bool:
        """Whether the logits are edited before anything is drawn from them."""
        return self.has_penalties or self.has_bias or self.has_mask

    @property
    def is_plain(self) -> bool:
        """Whether all that is asked for is an arg-max, or a draw at a temperature without filters."""
        is_filtered = not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)
        return not is_filtered and not self.is_adjusted and self.logprobs < 0


@dataclass(frozen=True, slots=True)
class Floats:
    """Columns of the float64 table; cast to float32 where they meet logits."""

    temperature: int = 0
    top_p: int = 1
    min_p: int = 2
    repetition: int = 3
    presence: int = 4
    frequency: int = 5
    count: int = 6


@dataclass(frozen=True, slots=True)
class Ints:
    """Columns of the int64 table. `tally` is the slot's row of token counts, 0 for none."""

    key_low: int = 0
    key_high: int = 1
    top_k: int = 2
    masked_before: int = 3
    is_greedy: int = 4
    tally: int = 5
    count: int = 6


FLOATS = Floats()
INTS = Ints()


class TokenList:
    """Per slot, pairs of a token id and what is added to its logit. Widens by doubling; unused places add 0 to id 0."""

    def __init__(self, max_slots: int, device: torch.device) -> None:
        self.ids = torch.zeros((max_slots, 0), dtype=torch.int64, device=device)
        self.values = torch.zeros((max_slots, 0), dtype=torch.float32, device=device)

    def set(self, slot: int, pairs: dict[int, float]) -> None:
        """Replace the pairs of `slot`."""
        width = self.ids.shape[1]
        if not pairs and not width:
            return
        if len(pairs) > width:
            extra = max(4, 1 << (len(pairs) - 1).bit_length()) - width
            self.ids = torch.nn.functional.pad(self.ids, (0, extra))
            self.values = torch.nn.functional.pad(self.values, (0, extra))
            width += extra
        padding = [0] * (width - len(pairs))
        self.ids[slot].copy_(torch.tensor([*pairs, *padding], dtype=torch.int64), non_blocking=True)
        values = torch.tensor([*pairs.values(), *padding], dtype=torch.float32)
        self.values[slot].copy_(values, non_blocking=True)


class SlotTable:
    """Parameters of all slots. `plans[slot]` is None for a slot that is not in use."""

    def __init__(self, max_slots: int, vocab_size: int, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self.plans: list[SlotPlan | None] = [None] * max_slots
        self.floats = torch.zeros((max_slots, FLOATS.count), dtype=torch.float64, device=device)
        for column in (FLOATS.temperature, FLOATS.top_p, FLOATS.repetition):
            self.floats[:, column] = 1.0
        self.ints = torch.zeros((max_slots, INTS.count), dtype=torch.int64, device=device)
        self.ints[:, INTS.is_greedy] = 1
        self.bias = TokenList(max_slots, device)
        self.mask = TokenList(max_slots, device)

    def set(self, slot: int, params: SamplingParams, prompt_length: int, choice: int, tally: int) -> SlotPlan:
        """Fill the row of `slot`; `tally` is its row of token counts. Returns the plan."""
        bias = self._bias(params)
        mask = self._mask(params)
        plan = self._plan(params, prompt_length, choice, has_bias=bool(bias), has_mask=bool(mask))
        floats = (plan.temperature, plan.top_p, plan.min_p)
        penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self.floats[slot].copy_(torch.tensor([*floats, *penalties], dtype=torch.float64), non_blocking=True)
        key = (plan.key & _WORD, plan.key >> 32)
        ints = [*key, plan.top_k, plan.masked_before, int(plan.is_greedy), tally]
        self.ints[slot].copy_(torch.tensor(ints, dtype=torch.int64), non_blocking=True)
        self.bias.set(slot, bias)
        self.mask.set(slot, mask)
        self.plans[slot] = plan
        return plan

    def drop(self, slot: int) -> None:
        """Forget `slot`: it asks for nothing any more."""
        self.plans[slot] = None

    def clear(self) -> None:
        """Forget every slot."""
        self.plans = [None] * len(self.plans)

    def _plan(
        self, params: SamplingParams, prompt_length: int, choice: int, *, has_bias: bool, has_mask: bool
    ) -> SlotPlan:
        is_greedy = params.temperature <= 0.0 or params.top_k == 1
        return SlotPlan(
            is_greedy=is_greedy,
            temperature=1.0 if is_greedy else params.temperature,
            top_k=params.top_k if 0 < params.top_k < self._vocab_size else 0,
            top_p=min(params.top_p, 1.0),
            min_p=max(params.min_p, 0.0),
            key=stream_key(params.seed, choice),
            masked_before=prompt_length + params.min_new_tokens,
            has_penalties=has_penalties(params),
            has_bias=has_bias,
            has_mask=has_mask,
            logprobs=params.logprobs,
        )

    def _bias(self, params: SamplingParams) -> dict[int, float]:
        return {token: value for token, value in params.logit_bias if 0 <= token < self._vocab_size and value != 0.0}

    def _mask(self, params: SamplingParams) -> dict[int, float]:
        """Tokens that would end the output, as long as it must not end."""
        if params.min_new_tokens <= 0:
            return {}
        tokens = (*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids))
        return {token: float("-inf") for token in tokens if 0 <= token < self._vocab_size}


def has_penalties(params: SamplingParams) -> bool:
    """Return whether the parameters make a logit depend on the tokens so far."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
