"""The journal of an api process: every live request with the output delivered so far. Sans-IO.

The api process owns a request's life; all state downstream is cache. A request that a dead process held, or that is
found lost, is submitted again, self-contained, with the next attempt number. Output of any other attempt is dropped,
and each output token is delivered once and in order (faults R1 to R8).
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from quartet.client.trials import Trials
from quartet.quarantine import Quarantine, fingerprint
from quartet.runtime.core import Metrics
from quartet.wire.errors import RequestError
from quartet.wire.frames import (
    ID_BYTES,
    DeltaItem,
    HeldRequest,
    LastEnd,
    LiveRequest,
    ProcessStatus,
    PromptDelta,
    Submit,
    TextLogprobs,
)
from quartet.wire.ids import Rid, Role, process_name

MISSES_BEFORE_REPLAY = 2
STALL_S = 5.0
MAX_STALL_REPLAYS = 3
CRASHES_TOGETHER, KILLS_ON_TRIAL = 1, 2
"""How requests that end a process are found (trials.py)."""

Key = tuple[Rid, int]
Owner = TypeVar("Owner")


@dataclass(slots=True)
class Entry(Generic[Owner]):
    """One live (rid, choice): its Submit, the output delivered so far, and its `owner`.

    `prompt` has the log-probabilities of the prompt as far as they have come; None if none are wanted, or they are
    delivered. They go ahead of all output: until then `text_length` is -1, which no output begins at.
    """

    submit: Submit
    owner: Owner
    deadline_s: float | None
    """Absolute, in the caller's time."""
    outputs: "array[int]" = field(default_factory=lambda: array("i"))
    text_length: int = 0
    is_accepted: bool = False
    misses: int = 0
    steps_seen: int = -1
    progress_s: float = 0.0
    stall_replays: int = 0
    is_submitted: bool = False
    prompt: list[TextLogprobs] | None = None

    def __post_init__(self) -> None:
        if self.submit.params.prompt_logprobs >= 0:
            self.prompt, self.text_length = [], -1

    def next_attempt(self, now: float) -> Submit:
        """Return the frame that submits the request again with what has been delivered, and make it current."""
        left_s = None if self.deadline_s is None else max(0.0, self.deadline_s - now)
        self.submit = msgspec.structs.replace(
            self.submit, attempt=self.submit.attempt + 1, output_ids=self.outputs.tobytes(), deadline_s=left_s
        )
        self.misses, self.steps_seen, self.progress_s = 0, -1, now
        return self.submit if self.prompt is not None else without_prompt(self.submit)


def without_prompt(submit: Submit) -> Submit:
    """Return the Submit of a request whose client has all that it wants of the prompt."""
    if submit.params.prompt_logprobs < 0:
        return submit
    params = msgspec.structs.replace(submit.params, prompt_logprobs=-1)
    return msgspec.structs.replace(submit, params=params)


class Gap(Exception):
    """Output is missing before this item: the request must be submitted again."""


class Journal(Generic[Owner]):
    """Live requests of one api process, oldest first. Output ids are kept in 4 bytes each."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry[Owner]] = {}
        self.trials: Trials[Key] = Trials(CRASHES_TOGETHER, KILLS_ON_TRIAL)
        self.quarantine = Quarantine()
        self.stale_items = 0
        self.divergences = 0
        self.replays = 0

    def metrics(self) -> Metrics:
        """Return what is live, and what was replayed or dropped."""
        return Metrics(
            {"api_live_requests": float(len(self.entries))},
            {
                "api_replays": float(self.replays),
                "api_stale_items": float(self.stale_items),
                "api_replay_divergences": float(self.divergences),
                "api_quarantined_requests": float(self.quarantine.found_count),
                "api_quarantine_refusals": float(self.quarantine.refused_count),
            },
        )

    def add(self, submit: Submit, owner: Owner, deadline_s: float | None, now: float) -> list[Submit]:
        """Enter a request; returns its Submit, unless it has to wait for the trials after a death."""
        key = submit.rid, submit.choice
        self.entries[key] = Entry(submit, owner, deadline_s, progress_s=now)
        return self.send([key], now) if self.trials.may_start(key) else []

    def send(self, keys: Iterable[Key], now: float) -> list[Submit]:
        """Return the first Submits of requests, or their next attempts; those that have ended are passed over."""
        submits = []
        for entry in [self.entries[key] for key in keys if key in self.entries]:
            submits.append(self.replay(entry, now) if entry.is_submitted else entry.submit)
            entry.is_submitted, entry.progress_s = True, now
        return submits

    def take_over(self, entry: Entry[Owner], now: float) -> Submit:
        """Enter a request that a predecessor of this process has submitted; returns its next attempt."""
        self.entries[entry.submit.rid, entry.submit.choice] = entry
        entry.is_submitted = True
        return self.replay(entry, now)

    def remove(self, rid: Rid, choice: int, now: float) -> list[Submit]:
        """Forget a request that has ended; unknown ones are fine. Returns what has waited for its end."""
        self.entries.pop((rid, choice), None)
        return self.send(self.trials.end((rid, choice)), now)

    def note_progress(self, entry: Entry[Owner], now: float) -> list[Submit]:
        """A request has new output while trials are open; returns what has waited for that."""
        key = entry.submit.rid, entry.submit.choice
        return self.send(self.trials.note_progress(key, len(entry.outputs)), now)

    def current(self, rid: Rid, choice: int, attempt: int) -> Entry[Owner] | None:
        """Return a live request, if that is its current attempt."""
        entry = self.entries.get((rid, choice))
        return entry if entry is not None and entry.submit.attempt == attempt else None

    def take(self, item: DeltaItem, now: float) -> tuple[Entry[Owner], DeltaItem] | None:
        """Journal new output and return what is to be delivered, trimmed of what was delivered before.

        None for output of another attempt or of an ended request. Raises Gap if tokens are missing.
        """
        entry = self.entries.get((item.rid, item.choice))
        if entry is None or entry.submit.attempt != item.attempt:
            self.stale_items += 1
            return None
        outputs = entry.outputs
        have = len(outputs)
        if item.index != have:
            item = self._trim(entry, item)
        if item.offset != entry.text_length:
            self.divergences += entry.prompt is None
            raise Gap
        outputs.frombytes(item.ids)
        entry.text_length += len(item.text)
        if item.ids or item.finish is not None:
            entry.progress_s, entry.stall_replays = now, 0
        if item.finish is not None and item.finish.count < len(outputs):
            del outputs[item.finish.count :]
        return entry, item

    def take_prompt(self, part: PromptDelta, now: float) -> tuple[Entry[Owner], list[TextLogprobs]] | None:
        """Journal log-probabilities of a prompt; returns all of them when the last have come.

        None before that, for those of another attempt, and for those that were delivered. Raises Gap if some are
        missing."""
        entry = self.current(part.rid, part.choice, part.attempt)
        if entry is None or entry.prompt is None:
            self.stale_items += 1
            return None
        prompt = entry.prompt
        if part.start > len(prompt):
            raise Gap
        prompt += part.tokens[len(prompt) - part.start :]
        entry.progress_s, entry.stall_replays = now, 0
        if not part.is_last:
            return None
        entry.prompt, entry.text_length = None, 0
        return entry, prompt

    def _trim(self, entry: Entry[Owner], item: DeltaItem) -> DeltaItem:
        have = len(entry.outputs)
        if item.index > have:
            raise Gap
        known = have - item.index
        if item.ids[: known * ID_BYTES] != entry.outputs[item.index :].tobytes()[: len(item.ids)]:
            self.divergences += 1
            raise Gap
        skip = max(0, entry.text_length - item.offset)
        return msgspec.structs.replace(
            item,
            index=have,
            ids=item.ids[known * ID_BYTES :],
            text=item.text[skip:],
            offset=item.offset + skip,
            logprobs=None if item.logprobs is None else item.logprobs[known:],
        )

    def replay(self, entry: Entry[Owner], now: float) -> Submit:
        """Return the next attempt of one request."""
        self.replays += 1
        return entry.next_attempt(now)

    def on_deaths(
        self, restarted: list[ProcessStatus], now: float
    ) -> tuple[list[Key], list[tuple[Entry[Owner], RequestError]]]:
        """Processes have died, and their successors start.

        Returns what to `send` again, oldest first, and the requests that are at fault with their errors, which are to
        be given up before that."""
        holders = [process for process in restarted if process.role in (Role.SCHEDULER, Role.DETOK)]
        names = {process_name(process.role, process.rank) for process in holders}
        is_scheduler_dead = any(process.role is Role.SCHEDULER for process in holders)
        held = {
            key: len(entry.outputs)
            for key, entry in self.entries.items()
            if is_scheduler_dead or entry.submit.detok in names
        }
        if not holders:
            return [], []
        verdict = self.trials.on_death(held, max((process.last_end for process in holders), key=list(LastEnd).index))
        roles = " or ".join(process.role.label for process in holders)
        at_fault = [(self.entries[key], self._refuse(key, roles, now)) for key in verdict.at_fault]
        return verdict.again, at_fault

    def _refuse(self, key: Key, roles: str, now: float) -> RequestError:
        submit = self.entries[key].submit
        return self.quarantine.refuse(fingerprint(submit.prompt_ids, submit.params), roles, now)

    def live_requests(self) -> list[LiveRequest]:
        """Return what is alive, for the LiveSet of each second."""
        return [
            LiveRequest(rid, choice, entry.submit.attempt, len(entry.outputs))
            for (rid, choice), entry in self.entries.items()
        ]

    def pause(self, now: float) -> None:
        """No request can make progress, because a process is missing: nothing is lost or stalls before it is back."""
        for entry in self.entries.values():
            entry.misses, entry.stall_replays, entry.progress_s = 0, 0, now

    def lost(
        self, held: list[HeldRequest], is_step_in_flight: bool, now: float
    ) -> tuple[list[Entry[Owner]], list[Entry[Owner]]]:
        """Compare with what the scheduler holds; returns (to submit again, to give up on).

        Lost is what is missing from two answers, or runs without a step or a token for STALL_S. Waiting is not
        stalling, and neither is a step in progress.
        """
        holding = {(item.rid, item.choice): item for item in held}
        again: list[Entry[Owner]] = []
        hopeless: list[Entry[Owner]] = []
        for key, entry in self.entries.items():
            if self.trials.is_held(key):
                continue
            item = holding.get(key)
            if item is None or item.attempt != entry.submit.attempt:
                entry.misses += 1
                is_lost = entry.misses >= MISSES_BEFORE_REPLAY
            else:
                entry.misses = 0
                if is_step_in_flight or not item.is_running or item.steps_issued != entry.steps_seen:
                    entry.steps_seen, entry.progress_s = item.steps_issued, max(entry.progress_s, now)
                is_lost = now - entry.progress_s > STALL_S
            if is_lost:
                entry.stall_replays += 1
                (hopeless if entry.stall_replays > MAX_STALL_REPLAYS else again).append(entry)
        return again, hopeless
