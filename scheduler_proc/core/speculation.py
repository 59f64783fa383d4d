"""Speculative decoding with drafts from a request's own text (rules STEP-17 to STEP-20).

A drafted token is one more row of the step, with the position that it would have. Each row samples by its own seed and
position, and drafts hold while they equal what the row before them has sampled; so the output is what it would be
without drafts. While drafts are made, a step is formed when the one before it is back, because only then the newest ids
are known; whether drafts would have held is seen without making any.
"""

from collections.abc import Collection, Iterator, Sequence

from quartet.wire.frames import SamplingParams, pack_ids
from scheduler_proc.core.in_flight import IssuedStep
from scheduler_proc.core.request import Request
from scheduler_proc.core.step_work import StepWork
from scheduler_proc.core.text_match import TextMatch

MAX_ROWS = 64
"""Rows of a step with drafts: up to about as many, a step takes hardly longer than with one."""
MAX_REQUESTS = MAX_ROWS // 2
LEAST_RATE = 0.3
"""Of a request's outputs that its text told, below which it gets no drafts."""
START_RATE, STOP_RATE = 0.4, 0.25
"""The mean over all rows from which drafts are made, and below which no more."""


class Speculation:
    """Says when drafts are made, and makes them. Args: drafted tokens of a row at most; 0 for none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._matches: dict[int, TextMatch] = {}
        # Generations whose lengths and newest ids the worker does not know.
        self._stale: Collection[int] = ()
        self.is_on = False

    @property
    def is_wanted(self) -> bool:
        """Whether there may be drafts at all."""
        return self._most > 0

    def look_at(self, rows: list[Request]) -> None:
        """Take the newest outputs of the rows that decode, and decide whether drafts are made (STEP-19)."""
        self._matches = self._followed(rows) if len(rows) <= MAX_REQUESTS else {}
        rate = sum(match.rate for match in self._matches.values()) / max(1, len(rows))
        self.is_on = rate >= (STOP_RATE if self.is_on else START_RATE)

    def _followed(self, rows: list[Request]) -> dict[int, TextMatch]:
        """Return the texts of rows, by generation, with their newest outputs; of new ones, which take milliseconds to
        index, one a call."""
        found: dict[int, TextMatch] = {}
        may_index = True
        for request in rows:
            match = self._matches.get(request.generation)
            if match is None and may_index and can_have_drafts(request.params) and request.suspicion is None:
                match, may_index = TextMatch(request.prompt_key), False
            if match is not None:
                match.follow(request.output_ids)
                found[request.generation] = match
        return found

    def drafts(self, work: StepWork) -> Iterator[tuple[Request, list[int]]]:
        """Yield the drafts of a step that decodes only; no other step is in flight (STEP-20)."""
        if not self.is_on or work.prefill.chunks or not work.rows:
            return
        most = min(self._most, MAX_ROWS // len(work.rows) - 1)
        for request in work.rows:
            match = self._matches.get(request.generation)
            if match is not None and match.rate >= LEAST_RATE:
                # The last token of a request is never drafted, so that its slot is not given back before it is known.
                yield request, match.draft(min(most, request.max_new_tokens - request.launched - 1))

    def given_rows(self, work: StepWork) -> bytes:
        """Return the rows of a step as Step.rows has them; nothing where the worker knows them by itself."""
        if not work.rows or not (work.drafts or self._stale):
            return b""
        triples: list[int] = []
        for request in sorted(work.rows, key=lambda one: one.slot):
            drafts = work.drafts.get(request.generation, [])
            context = request.lease.num_computed_tokens - len(drafts)
            is_known = request.in_flight == 1 + len(drafts)
            ids = [request.output_ids[-1] if is_known else -1, *drafts]
            for at, token in enumerate(ids):
                triples += request.slot, context + at, token
        self._stale = tuple(work.drafts)
        return pack_ids(triples)


def settle(
    step: IssuedStep, generations: Sequence[int], ids: Sequence[int], failed: Collection[int]
) -> tuple[set[int], dict[int, int]]:
    """Return the rows of a result that mean nothing, since they follow a draft that does not hold, and how many drafts
    do not, by generation (STEP-18). `failed` are rows without an id."""
    rejected: set[int] = set()
    lost: dict[int, int] = {}
    at = 0
    while at < len(generations):
        drafts = step.drafts.get(generations[at], ())
        held = 0
        while held < len(drafts) and ids[at + held] == drafts[held] and at + held not in failed:
            held += 1
        if drafts:
            rejected.update(range(at + held + 1, at + len(drafts) + 1))
            lost[generations[at]] = len(drafts) - held
        at += len(drafts) + 1
    return rejected, lost


def can_have_drafts(params: SamplingParams) -> bool:
    """Say whether a row depends on nothing but its position: not on penalties or a grammar, which follow what was
    sampled before, and has no log-probabilities, which are given for each sampled row (STEP-17)."""
    has_penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    return not has_penalties and params.logprobs < 0 and params.grammar is None
