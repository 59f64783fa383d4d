"""Log-probabilities of a prompt in the journal: ahead of all output, once, and not asked for again."""

import pytest
from journal_rig import RID, item, submit
from msgspec.structs import replace

from quartet.client.adoption import Adopted, Progress
from quartet.client.journal import Gap, Journal
from quartet.client.request import GenerateRequest, Output
from quartet.wire.frames import Encoded, IdsPrompt, PromptDelta, SamplingParams, TextLogprobs, pack_ids
from quartet.wire.ids import Epoch

PARAMS = SamplingParams(seed=5, prompt_logprobs=1)
TOKENS = [TextLogprobs(f"t{i}", b"", -float(i), (), 0, i or -1) for i in range(5)]


def part(start: int, end: int, attempt: int = 0, is_last: bool = False) -> PromptDelta:
    return PromptDelta(RID, 0, attempt, start, TOKENS[start:end], is_last)


@pytest.fixture
def journal() -> Journal[str]:
    made: Journal[str] = Journal()
    made.add(replace(submit(), params=PARAMS), "client", None, 0.0)
    return made


def test_parts_are_gathered_and_repeated_ones_left_out(journal: Journal[str]) -> None:
    assert journal.take_prompt(part(0, 2), 0.0) is None
    assert journal.take_prompt(part(0, 2), 0.0) is None
    assert journal.take_prompt(part(1, 4), 0.0) is None
    taken = journal.take_prompt(part(4, 5, is_last=True), 0.0)
    assert taken is not None and taken[1] == TOKENS
    assert journal.take_prompt(part(0, 5, is_last=True), 0.0) is None
    assert journal.take(item(0, [3]), 0.0) is not None


def test_a_missing_part_and_output_ahead_of_the_prompt_are_gaps(journal: Journal[str]) -> None:
    with pytest.raises(Gap):
        journal.take_prompt(part(1, 2), 0.0)
    journal.take_prompt(part(0, 2), 0.0)
    with pytest.raises(Gap):
        journal.take(item(0, [3]), 0.0)
    assert not journal.divergences and not journal.entries[RID, 0].outputs


def test_another_attempts_parts_are_stale(journal: Journal[str]) -> None:
    assert journal.take_prompt(part(0, 5, attempt=1, is_last=True), 0.0) is None
    assert journal.stale_items == 1


def test_a_later_attempt_asks_for_what_was_not_delivered(journal: Journal[str]) -> None:
    entry = journal.entries[RID, 0]
    journal.take_prompt(part(0, 2), 0.0)
    assert journal.replay(entry, 0.0).params.prompt_logprobs == 1
    journal.take_prompt(part(0, 5, attempt=1, is_last=True), 0.0)
    again = journal.replay(entry, 0.0)
    assert (again.attempt, again.params.prompt_logprobs) == (2, -1)
    assert entry.submit.params == PARAMS, "a request at fault is known by what its client has asked for"


@pytest.mark.parametrize(("outputs", "wanted"), [([], 1), ([Output(0, [], "", TOKENS, None)], -1)])
def test_a_successor_asks_only_for_what_its_predecessor_has_not_delivered(outputs: list[Output], wanted: int) -> None:
    progress = Progress()
    for output in outputs:
        progress.add(output)
    prompt = IdsPrompt(pack_ids([1, 2]))
    adopted = Adopted(
        request=GenerateRequest(prompt=prompt, params=PARAMS),
        rid=RID,
        encoded=Encoded(1, prompt.ids, "", PARAMS),
        start_s=0.0,
        choices=[progress],
        epoch=Epoch(2),
    )
    (sent,) = adopted.enter(Journal(), "client", "api-0", 1, 0.0)  # type: ignore[arg-type]
    assert sent.params.prompt_logprobs == wanted
