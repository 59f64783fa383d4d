"""Sampling parameters of every slot: a host copy to decide by, and device tables to compute with.

The device tables are indexed by slot, so that no stage has to bring anything to the host. Unset entries are neutral: a
slot that was never set is greedy and needs no other stage. The numbers of all slots that are set together reach the
device in one transfer.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quartet.wire.frames import SamplingParams
from worker_proc.sampler.philox import stream_key

_WORD = 0xFFFFFFFF
# Far more than two steps in flight use: a staged row is not rewritten while its copy may still be in flight.
_RING = 16


class SamplingEntry(NamedTuple):
    """A sequence that enters `slot`: its parameters, and its ids so far, int64 on the host, of which the first
    `prompt_length` are the prompt."""

    slot: int
    params: SamplingParams
    ids: NDArray[np.int64]
    prompt_length: int
    choice: int


@dataclass(frozen=True, slots=True)
class SlotParams:
    """The resolved parameters of one slot, on the host. `top_k` 0, `top_p` 1 and `min_p` 0 mean no filter.

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
        """Whether the logits are edited before the draw."""
        return self.has_penalties or self.has_bias or self.has_mask

    @property
    def is_fusable(self) -> bool:
        """Whether the fused sampler suffices: an arg-max, or a draw at a temperature without filters."""
        is_filtered = not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)
        return not is_filtered and not self.is_adjusted and self.logprobs < 0


@dataclass(frozen=True, slots=True)
class Floats:
    """Columns of the float64 table; cast to float32 where they are combined with logits."""

    temperature: int = 0
    top_p: int = 1
    min_p: int = 2
    repetition: int = 3
    presence: int = 4
    frequency: int = 5
    count: int = 6


@dataclass(frozen=True, slots=True)
class Ints:
    """Columns of the int64 table. `counts_row` is the slot's row of token counts, 0 for none."""

    key_low: int = 0
    key_high: int = 1
    top_k: int = 2
    masked_before: int = 3
    is_greedy: int = 4
    counts_row: int = 5
    count: int = 6


FLOATS = Floats()
INTS = Ints()
_ROW = struct.Struct(f"={1 + INTS.count}q{FLOATS.count}d")
"""A slot, then its integers and its floats."""


class TokenList:
    """Per slot, pairs of a token id and the value added to its logit. Widens by doubling; padding adds 0 to id 0."""

    def __init__(self, max_slots: int, device: torch.device) -> None:
        self.ids = torch.zeros((max_slots, 0), dtype=torch.int64, device=device)
        self.values = torch.zeros((max_slots, 0), dtype=torch.float32, device=device)
        self._filled: set[int] = set()

    def set(self, slot: int, pairs: dict[int, float]) -> None:
        """Replace the pairs of `slot`."""
        if not pairs and slot not in self._filled:
            return
        self._widen(len(pairs))
        padding = [0] * (self.ids.shape[1] - len(pairs))
        self.ids[slot].copy_(torch.tensor([*pairs, *padding], dtype=torch.int64), non_blocking=True)
        values = torch.tensor([*pairs.values(), *padding], dtype=torch.float32)
        self.values[slot].copy_(values, non_blocking=True)
        if pairs:
            self._filled.add(slot)
        else:
            self._filled.remove(slot)

    @torch.inference_mode(False)
    def _widen(self, width: int) -> None:
        if width > self.ids.shape[1]:
            extra = max(4, 1 << (width - 1).bit_length()) - self.ids.shape[1]
            ids, values = (torch.nn.functional.pad(part, (0, extra)) for part in (self.ids, self.values))
            self.ids, self.values = ids, values


class SamplingTable:
    """Parameters of all slots. `slot_params[slot]` is None for a slot that is not in use.

    A slot's numbers are one row of int64, so that one copy sets them all; `ints` [slots, 6] and `floats` [slots, 6] are
    views of its halves, the latter reinterpreted as float64.
    """

    def __init__(self, max_slots: int, vocab_size: int, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = device
        self.slot_params: list[SlotParams | None] = [None] * max_slots
        width, is_cuda = INTS.count + FLOATS.count, device.type == "cuda"
        self._rows = torch.zeros((max_slots, width), dtype=torch.int64, device=device)
        # Rows to copy to the device, each preceded by its slot.
        self._staging = torch.zeros((_RING, max_slots, 1 + width), dtype=torch.int64, pin_memory=is_cuda)
        self._host = self._staging.numpy()
        self._ring_index = 0
        # Views made in advance, for steps that one request enters alone.
        self._row_of = [self._rows[slot] for slot in range(max_slots)]
        self._single_views = [self._staging[index, 0, 1:] for index in range(_RING)]
        self.ints = self._rows[:, : INTS.count]
        self.floats = self._rows[:, INTS.count :].view(torch.float64)
        for column in (FLOATS.temperature, FLOATS.top_p, FLOATS.repetition):
            self.floats[:, column] = 1.0
        self.ints[:, INTS.is_greedy] = 1
        self.bias = TokenList(max_slots, device)
        self.mask = TokenList(max_slots, device)

    def set(self, entering: Sequence[SamplingEntry], counts_rows: Sequence[int]) -> list[SlotParams]:
        """Fill the rows of distinct slots and return their parameters; `counts_rows` are their rows of token counts.

        Does not wait for the device; at most `_RING` calls may be in flight there."""
        self._ring_index = (self._ring_index + 1) % _RING
        slot_params = [self._set_lists(one) for one in entering]
        for row, one, resolved, counts_row in zip(
            self._host[self._ring_index], entering, slot_params, counts_rows, strict=False
        ):
            params = one.params
            ints = (
                resolved.key & _WORD,
                resolved.key >> 32,
                resolved.top_k,
                resolved.masked_before,
                resolved.is_greedy,
                counts_row,
            )
            penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
            _ROW.pack_into(row, 0, one.slot, *ints, resolved.temperature, resolved.top_p, resolved.min_p, *penalties)
        if len(entering) == 1:
            # A plain copy, without a kernel launch.
            self._row_of[entering[0].slot].copy_(self._single_views[self._ring_index], non_blocking=True)
        elif entering:
            device_rows = self._staging[self._ring_index, : len(entering)].to(self._device, non_blocking=True)
            self._rows.index_copy_(0, device_rows[:, 0], device_rows[:, 1:])
        return slot_params

    def _set_lists(self, one: SamplingEntry) -> SlotParams:
        """Fill the token lists of a slot; keep and return its parameters."""
        bias, mask = self._bias(one.params), self._mask(one.params)
        self.bias.set(one.slot, bias)
        self.mask.set(one.slot, mask)
        resolved = self._resolve(one.params, one.prompt_length, one.choice, has_bias=bool(bias), has_mask=bool(mask))
        self.slot_params[one.slot] = resolved
        return resolved

    def drop(self, slot: int) -> None:
        """Forget the parameters of `slot`."""
        self.slot_params[slot] = None

    def clear(self) -> None:
        """Forget every slot."""
        self.slot_params = [None] * len(self.slot_params)

    def _resolve(
        self, params: SamplingParams, prompt_length: int, choice: int, *, has_bias: bool, has_mask: bool
    ) -> SlotParams:
        is_greedy = params.temperature <= 0.0 or params.top_k == 1
        return SlotParams(
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
        """Return the tokens that end the output, masked while it is shorter than min_new_tokens."""
        if params.min_new_tokens <= 0:
            return {}
        tokens = (*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids))
        return {token: float("-inf") for token in tokens if 0 <= token < self._vocab_size}


def has_penalties(params: SamplingParams) -> bool:
    """Return whether the parameters make a logit depend on the tokens so far."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
