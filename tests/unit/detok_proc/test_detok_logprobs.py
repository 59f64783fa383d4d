"""Log-probabilities with text: the name of each token, and where its text begins in the output."""

from typing import Any

from detok_rig import Heard, Rig, end_of, rid_of
from test_detok_core import ids_of

from detok_proc.incremental import DecoderFactory
from quartet.wire.frames import TextLogprobs, TokenLogprobs, pack_ids

BEYOND = 5000
"""An id that the vocabularies of the tests do not have, like the padding rows of an output matrix."""


def entries_of(heard: Heard) -> list[TextLogprobs]:
    return [entry for item in heard.items for entry in item.logprobs or []]


def entry_for(factory: DecoderFactory, token: int, top: list[int]) -> TextLogprobs:
    rig = Rig(factory)
    heard = rig.open()
    pairs = tuple((other, -0.5 * (rank + 1)) for rank, other in enumerate(top))
    logprob = dict(pairs).get(token, -9.0)
    rig.tokens([(1, 0, token)], logprobs=[(0, TokenLogprobs(logprob, pairs))])
    return entries_of(heard)[0]


def check_names(entry: TextLogprobs, count: int) -> None:
    names = {name: logprob for name, _, logprob in entry.top}
    assert len(names) == count, "each alternative has a name of its own"
    assert names.get(entry.token, entry.logprob) == entry.logprob, "the name is the sampled token's alone"


def test_bytes_that_are_no_whole_text_are_named_by_their_bytes(byte_level: DecoderFactory) -> None:
    singles = ids_of(byte_level, "😀é")
    pair = next(i for i in range(300) if byte_level.token_text(i)[1] == b"\xf0\x9f")
    for token in (pair, *singles):
        entry = entry_for(byte_level, token, [pair, *singles[:5]])
        check_names(entry, 6)
    assert entry_for(byte_level, pair, [pair]).top == ((r"bytes:\xf0\x9f", b"\xf0\x9f", -0.5),)


def test_ids_without_a_token_are_named_by_their_number(byte_level: DecoderFactory) -> None:
    entry = entry_for(byte_level, BEYOND + 1, [BEYOND, BEYOND + 1, BEYOND + 2, 5])
    check_names(entry, 4)
    assert (entry.token, entry.token_bytes) == (f"token_id:{BEYOND + 1}", b"")


def test_tokens_of_the_same_text_have_different_names(sentencepiece: DecoderFactory) -> None:
    texts: dict[str, list[int]] = {}
    for token in range(len(sentencepiece.vocabulary)):
        texts.setdefault(sentencepiece.token_text(token)[0], []).append(token)
    plain, byte = texts["a"]
    for token in (plain, byte):
        entry = entry_for(sentencepiece, token, [plain, byte, *texts["b"]])
        check_names(entry, 4)
        assert (entry.token, entry.token_bytes) == ("a", b"a"), "the sampled token keeps its text"


def offsets(factory: DecoderFactory, ids: list[int], frame_rows: int = 1, **options: Any) -> tuple[str, list[int]]:
    """Send the ids in frames of `frame_rows`, the end with the last; return the text and the offsets."""
    end = options.pop("end", None) or end_of(len(ids))
    rig = Rig(factory)
    heard = rig.open(**options)
    for start in range(0, len(ids), frame_rows):
        rows = [(1, index, ids[index]) for index in range(start, min(start + frame_rows, len(ids)))]
        known = [(row, TokenLogprobs(-1.0, ())) for row in range(len(rows))]
        rig.tokens(rows, [end] if rows[-1][1] == len(ids) - 1 else [], logprobs=known)
    return heard.text, [entry.offset for entry in entries_of(heard)]


def test_offsets_count_what_is_shown(byte_level: DecoderFactory, sentencepiece: DecoderFactory) -> None:
    a, b = ids_of(byte_level, "ab")
    special = 256 + 7 + 1
    emoji = ids_of(byte_level, "😀")
    hello = next(i for i in range(300) if sentencepiece.token_text(i)[0] == " hello")
    cases: list[tuple[DecoderFactory, list[int], dict[str, Any], str, list[int]]] = [
        (byte_level, [special] * 3, {}, "", [0, 0, 0]),
        (byte_level, [a, special, b], {}, "ab", [0, 1, 1]),
        (byte_level, [a, special, b], {"skip_special_tokens": False}, "a<|end|>b", [0, 1, 8]),
        (byte_level, [a, *emoji, b], {}, "a😀b", [0, 1, 1, 1, 1, 2]),
        (byte_level, [a, BEYOND, b], {}, "ab", [0, 1, 1]),
        (byte_level, [a, b, a], {"stop": ("abb",)}, "aba", [0, 1, 2]),
        (byte_level, [a, b, special], {"end": end_of(3, reason="stop", hidden=1)}, "ab", [0, 1, 2]),
        (sentencepiece, [hello, hello], {}, "hello hello", [0, 5]),
        (sentencepiece, [hello, hello], {"prompt_tail": pack_ids([hello])}, " hello hello", [0, 6]),
    ]
    for factory, ids, options, text, expected in cases:
        for frame_rows in (1, 2, len(ids)):
            assert offsets(factory, ids, frame_rows, **options) == (text, expected), (text, frame_rows)


def test_offsets_are_the_same_after_a_replay(byte_level: DecoderFactory) -> None:
    ids = [*ids_of(byte_level, "a😀b"), 256 + 7 + 1, *ids_of(byte_level, "xyz")]
    text, expected = offsets(byte_level, ids, stop=("bxyy",))
    for delivered in range(len(ids)):
        for known in range(delivered, len(ids)):
            rig = Rig(byte_level)
            shown = byte_level.make([], True)
            offset = sum(len(shown.push(token)) for token in ids[:delivered])
            # The stop string holds back all but the first two characters, until z shows that it is none.
            heard = rig.heard[rid_of(1)] = Heard(ids[:delivered], text[: min(offset, 2)])
            probabilities = [TokenLogprobs(-1.0, ())] * (known - delivered)
            rig.open(
                stop=("bxyy",), output_ids=pack_ids(ids[:known]), delivered_count=delivered, logprobs=probabilities
            )
            rest = range(known, len(ids))
            rig.tokens(
                [(1, index, ids[index]) for index in rest],
                [end_of(len(ids))],
                logprobs=[(row, TokenLogprobs(-1.0, ())) for row in range(len(rest))],
            )
            assert heard.text == text
            assert [entry.offset for entry in entries_of(heard)] == expected[delivered:]
