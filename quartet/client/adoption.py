"""Requests that an api process takes over from its predecessor: stated like new ones, with their output so far.

The scheduler may still hold them under an attempt of the predecessor, so that each incarnation of the process has
attempt numbers of its own, above those of all before it.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from quartet.client.journal import Entry, Journal
from quartet.client.request import GenerateRequest, Listener, Output, submit_of
from quartet.wire.frames import Encoded, Submit
from quartet.wire.ids import Epoch, Rid

ATTEMPTS_OF_AN_EPOCH = 1 << 16
"""More than one incarnation can make of a request: it dies, or the request fails, long before."""


@dataclass(slots=True)
class Progress:
    """What has been delivered of one choice; `has_prompt`: log-probabilities of its prompt, too."""

    ids: "array[int]" = field(default_factory=lambda: array("i"))
    text_length: int = 0
    is_finished: bool = False
    has_prompt: bool = False

    def add(self, output: Output) -> None:
        """Count one increment."""
        self.ids.extend(output.ids)
        self.has_prompt |= bool(output.logprobs and output.logprobs[0].rank)
        self.text_length += len(output.text)
        self.is_finished |= output.finish is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """One request to go on with: `epoch` is the adopting process's, `start_s` when it began, absolute, `choices` the
    progress of each choice."""

    request: GenerateRequest
    rid: Rid
    encoded: Encoded
    start_s: float
    choices: Sequence[Progress]
    epoch: Epoch

    def enter(
        self, journal: Journal[Listener], owner: Listener, reply_to: str, detoks: int, now: float
    ) -> list[Submit]:
        """Journal the choices that have not finished; returns the next attempt of each."""
        before = self.epoch * ATTEMPTS_OF_AN_EPOCH - 1
        whole_s = self.request.deadline_s
        deadline_s = None if whole_s is None else self.start_s + whole_s
        submits = []
        request = msgspec.structs.replace(self.request, accepted_s=self.start_s)
        for choice, progress in enumerate(self.choices):
            if not progress.is_finished:
                submit = submit_of(request, self.rid, choice, self.encoded, reply_to, detoks, before)
                entry = Entry(submit, owner, deadline_s, progress.ids, progress.text_length)
                if progress.has_prompt:
                    entry.prompt, entry.text_length = None, progress.text_length
                submits.append(journal.take_over(entry, now))
        return submits
