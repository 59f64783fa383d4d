"""Log-probabilities of a prompt get names: the first token has none, and long parts become several frames."""

from array import array

from detok_proc import core as core_module
from detok_proc.incremental import DecoderFactory
from quartet.wire.codec import Source
from quartet.wire.frames import Open, PromptDelta, PromptLogprobs, PromptTokens, pack_ids
from quartet.wire.ids import Epoch, Handle, Rid, Role

SCHEDULER = Source(Role.SCHEDULER, 0, Epoch(1))
RID = Rid(b"p" * 16)


def columns(ids: list[int], alternatives: int) -> PromptLogprobs:
    """Return scores of so many tokens: token t has -t / 2, rank t, and alternatives that are the ids 5, 6, ..."""
    floats = array("f", [-token / 2 for token in ids]).tobytes()
    top = [5 + i for _ in ids for i in range(alternatives)]
    return PromptLogprobs(floats, pack_ids(ids), pack_ids(top), array("f", [-0.5] * len(top)).tobytes())


def opened(prompt: list[PromptTokens]) -> Open:
    tail = pack_ids([1])
    return Open(Handle(1), RID, 0, 3, "api-0", tail, b"", 0, (), False, True, prompt=prompt)


def parts(core: core_module.DetokCore, frame: Open | PromptTokens) -> list[PromptDelta]:
    sent = core.handle(SCHEDULER, frame, 0.0)
    assert all(to == "api-0" for to, _ in sent)
    return [one for _, one in sent if isinstance(one, PromptDelta)]


def test_tokens_and_alternatives_have_names_and_the_first_token_no_number(byte_level: DecoderFactory) -> None:
    core = core_module.DetokCore(byte_level)
    assert not parts(core, opened([]))
    ids = [20, 21, 22]
    (part,) = parts(core, PromptTokens(Handle(1), 0, pack_ids(ids), columns(ids[1:], 2), False))
    assert (part.rid, part.choice, part.attempt, part.start, part.is_last) == (RID, 0, 3, 0, False)
    assert [one.token for one in part.tokens] == [byte_level.token_text(token)[0] for token in ids]
    assert [one.rank for one in part.tokens] == [-1, 21, 22]
    assert [one.logprob for one in part.tokens] == [0.0, -10.5, -11.0]
    assert part.tokens[0].top == () and part.tokens[1].top_ids == (5, 6)
    assert [name for name, _, _ in part.tokens[1].top] == [byte_level.token_text(token)[0] for token in (5, 6)]
    (last,) = parts(core, PromptTokens(Handle(1), 3, pack_ids([23]), columns([23], 0), True))
    assert (last.start, last.is_last, last.tokens[0].rank) == (3, True, 23)


def test_a_prompt_that_is_known_goes_out_with_the_open(byte_level: DecoderFactory) -> None:
    core, none = core_module.DetokCore(byte_level), PromptLogprobs(b"", b"", b"", b"")
    (part,) = parts(core, opened([PromptTokens(Handle(1), 0, pack_ids([20]), none, True)]))
    assert [one.rank for one in part.tokens] == [-1] and part.is_last


def test_a_long_part_becomes_frames_that_fit(byte_level: DecoderFactory) -> None:
    core = core_module.DetokCore(byte_level)
    parts(core, opened([]))
    ids = [20 + i % 100 for i in range(2000)]
    found = parts(core, PromptTokens(Handle(1), 0, pack_ids(ids), columns(ids[1:], 20), True))
    assert len(found) == 3 and [part.is_last for part in found] == [False, False, True]
    assert [part.start for part in found] == [0, len(found[0].tokens), len(found[0].tokens) + len(found[1].tokens)]
    assert sum(len(part.tokens) for part in found) == 2000


def test_parts_for_a_stream_that_is_not_open_are_counted(byte_level: DecoderFactory) -> None:
    core = core_module.DetokCore(byte_level)
    assert not parts(core, PromptTokens(Handle(9), 0, pack_ids([1]), columns([], 0), True))
    assert core.counters["detok_unknown_handles"] == 1
