"""Traces: what is written is read again, and what is wrong is named with its line."""

from pathlib import Path

import pytest

from quartet.simulator.request import Workload
from quartet.simulator.trace import TraceError, read_trace, write_trace
from quartet.wire.frames import pack_ids
from scheduler_proc.recorder import hash_pages

GOOD = '{"arrival_s": 0, "max_tokens": 4, "output_tokens": 2, "own_tokens": 8}'


def test_a_trace_survives_writing_and_reading(tmp_path: Path) -> None:
    requests = [
        Workload(arrival_s=0.5, max_tokens=9, output_tokens=3, prompt_ids=[1, 2, 3], priority=-2, tenant="t"),
        Workload(arrival_s=1.0, max_tokens=9, output_tokens=9, prefix_group="a", prefix_tokens=20, own_tokens=4),
        Workload(arrival_s=2.0, max_tokens=1, output_tokens=1, page_hashes=["x"], page_tokens=16, prompt_tokens=17),
        Workload(arrival_s=3.0, max_tokens=1, output_tokens=1, own_tokens=4, class_name="chat"),
    ]
    write_trace(tmp_path / "t.jsonl", requests)
    assert read_trace(tmp_path / "t.jsonl") == requests
    assert '"class":"chat"' in (tmp_path / "t.jsonl").read_text()
    assert [request.input_tokens for request in requests] == [3, 24, 17, 4]
    assert [request.label for request in requests] == ["priority -2", "all", "all", "chat"]


def test_requests_come_in_the_order_of_arrival(tmp_path: Path) -> None:
    later = GOOD.replace('"arrival_s": 0', '"arrival_s": 3')
    (tmp_path / "t.jsonl").write_text(later + "\n\n" + GOOD)
    assert [request.arrival_s for request in read_trace(tmp_path / "t.jsonl")] == [0, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "truncated"),
        (GOOD.replace("own_tokens", "own"), "unknown field `own`"),
        (GOOD.replace('"arrival_s": 0, ', ""), "arrival_s"),
        (GOOD.replace('"arrival_s": 0', '"arrival_s": -1'), "arrival_s -1.0 must be 0 or more"),
        (
            GOOD.replace('"output_tokens": 2', '"output_tokens": 5'),
            "output_tokens 5 must be between 1 and max_tokens 4",
        ),
        (GOOD.replace('"output_tokens": 2', '"output_tokens": "2"'), "output_tokens"),
        (GOOD.replace('"max_tokens": 4', '"max_tokens": 0'), "max_tokens 0 must be at least 1"),
        (GOOD.replace(', "own_tokens": 8', ""), "none given"),
        (GOOD.replace('"own_tokens"', '"prompt_ids": [1], "own_tokens"'), "prompt_ids as well as prefix_tokens"),
        (GOOD.replace('"own_tokens": 8', '"prompt_ids": []'), "the prompt is empty"),
        (GOOD.replace('"own_tokens": 8', '"prompt_ids": [-1]'), "prompt_ids must be between"),
        (GOOD.replace('"own_tokens": 8', '"own_tokens": -8, "prefix_tokens": 9'), "must be 0 or more"),
        (
            GOOD.replace('"own_tokens": 8', '"page_hashes": ["a"], "page_tokens": 16, "prompt_tokens": 40'),
            "1 page_hashes for 40 prompt_tokens in pages of 16: 2 expected",
        ),
        (GOOD.replace('"own_tokens": 8', '"page_hashes": ["a"], "prompt_tokens": 40'), "page_tokens 0 must be"),
    ],
)
def test_a_wrong_line_is_refused_with_file_line_and_field(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(GOOD + "\n" + line + "\n")
    with pytest.raises(TraceError) as raised:
        read_trace(tmp_path / "t.jsonl")
    assert "t.jsonl, line 2: " in str(raised.value) and message in str(raised.value)


def test_a_missing_or_empty_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TraceError, match="no requests"):
        read_trace(tmp_path / "empty.jsonl")


def test_page_hashes_agree_up_to_the_first_different_page_and_depend_on_the_key() -> None:
    first, second = pack_ids([*range(40)]), pack_ids([*range(20), 99, *range(21, 40)])
    mine, theirs = hash_pages(first, 16, b"k"), hash_pages(second, 16, b"k")
    assert len(mine) == 2
    assert mine[0] == theirs[0] and mine[1] != theirs[1]
    assert hash_pages(first, 16, b"other")[0] != mine[0]
