import json
import math
from pathlib import Path

import numpy as np
import pytest

from quartet.bench.datasets import Options, make_requests
from quartet.bench.fleet import divide
from quartet.bench.plan import PlannedRequest, Target
from quartet.bench.schedule import arrival_times
from quartet.bench.vocabulary import Vocabulary
from quartet.wire.errors import ConfigError
from quartet.wire.frames import unpack_ids

NO_TOKENIZER = Vocabulary()
TARGET = Target(address="http://localhost", backend="openai")


def make(name: str, **fields: object) -> list[PlannedRequest]:
    return make_requests(Options(dataset_name=name, **fields), NO_TOKENIZER)  # type: ignore[arg-type]


def test_all_come_at_once_without_a_rate() -> None:
    assert arrival_times(3, math.inf, 1.0, 0) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 20.0, math.inf])
def test_the_last_request_comes_after_the_whole_time_that_the_rate_gives(burstiness: float) -> None:
    times = arrival_times(200, 10.0, burstiness, 7)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(20.0)
    gaps = np.diff([0.0, *times])
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.3)


def test_arrivals_are_those_of_vllms_client() -> None:
    """It draws from numpy's global generator, seeded with the seed."""
    expected = np.cumsum(np.random.RandomState(3).gamma(1.0, 0.5, 4))
    assert arrival_times(4, 2.0, 1.0, 3) == pytest.approx(list(expected * (2.0 / expected[-1])))


def test_random_lengths_vary_by_the_ratio_and_follow_the_seed() -> None:
    some = make("random-ids", num_prompts=300, random_input_len=100, random_output_len=10, random_range_ratio=0.5)
    assert {50, 150} >= {min(one.input_tokens for one in some), max(one.input_tokens for one in some)}
    assert {one.output_tokens for one in some} == set(range(5, 16))
    assert all(len(unpack_ids(one.ids)) == one.input_tokens for one in some)
    again = make("random-ids", num_prompts=300, random_input_len=100, random_output_len=10, random_range_ratio=0.5)
    assert again == some
    assert len({one.ids for one in some}) == 300


def test_ids_stay_below_the_vocabulary() -> None:
    draw = np.random.default_rng(0)
    for size in (4, 500, 32000):
        ids = Vocabulary(size).draw(draw, 1000)
        assert ids.min() >= 0 and ids.max() < size


def test_the_prompts_of_a_group_share_their_beginning_alone() -> None:
    sizes = {"gsp_num_groups": 3, "gsp_prompts_per_group": 4, "gsp_system_prompt_len": 50, "gsp_question_len": 5}
    ordered = make("generated-shared-prefix", gsp_ordered=True, **sizes)
    prefixes = [one.ids[:200] for one in ordered]
    assert [len(set(prefixes[at : at + 4])) for at in (0, 4, 8)] == [1, 1, 1]
    assert len(set(prefixes)) == 3 and len({one.ids for one in ordered}) == 12
    mixed = make("generated-shared-prefix", **sizes)
    assert mixed != ordered and sorted(one.ids for one in mixed) == sorted(one.ids for one in ordered)


def test_a_trace_keeps_its_times_and_what_its_prompts_share(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]},
        {"timestamp": 3000, "input_length": 1100, "output_length": 9, "hash_ids": [1, 2, 4]},
        {"timestamp": 90000, "input_length": 10, "output_length": 1, "hash_ids": [5]},
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    first, second = make("trace", dataset_path=str(trace), speed=2.0, first=1.0)
    assert (first.due_s, second.due_s) == (0.0, 1.5)
    assert (first.output_tokens, second.output_tokens) == (7, 9)
    ids, others = unpack_ids(first.ids), unpack_ids(second.ids)
    assert len(ids) == 1100 and ids[:1024] == others[:1024]
    assert ids[1024] != others[1024] or ids[1025] != others[1025]


def test_a_rate_is_for_a_trace_without_times(tmp_path: Path) -> None:
    lengths, timed = tmp_path / "lengths.csv", tmp_path / "timed.csv"
    lengths.write_text("input_tokens,output_tokens\n5,3\n6,4\n")
    timed.write_text("arrival_ms,input_tokens,output_tokens\n0,5,3\n")
    with pytest.raises(ConfigError, match="give --request-rate"):
        make("trace", dataset_path=str(lengths))
    for rated in ({"request_rate": 5.0}, {"is_timed": False}):
        assert [one.input_tokens for one in make("trace", dataset_path=str(lengths), **rated)] == [5, 6]
    assert len(make("trace", dataset_path=str(timed), is_timed=False)) == 1
    with pytest.raises(ConfigError, match="give --speed in place of --request-rate"):
        make("trace", dataset_path=str(timed), request_rate=5.0)


def test_sharegpt_needs_a_tokenizer_or_a_length(tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    with pytest.raises(ConfigError, match="give --tokenizer"):
        make("sharegpt", dataset_path=str(file))
    (only,) = make("sharegpt", dataset_path=str(file), sharegpt_output_len=12)
    assert (only.text, only.output_tokens) == ("hello", 12)
    file.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="is no ShareGPT file"):
        make("sharegpt", dataset_path=str(file), sharegpt_output_len=12)


def test_processes_share_requests_and_places() -> None:
    requests = [PlannedRequest(output_tokens=number, due_s=number) for number in range(1, 8)]
    orders = divide(TARGET, requests, 5, 3)
    assert [order.indices for order in orders] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [order.max_concurrency for order in orders] == [2, 2, 1]
    assert [one.output_tokens for one in orders[1].requests] == [2, 5]
    assert [order.max_concurrency for order in divide(TARGET, requests, 0, 3)] == [0, 0, 0]
    assert len(divide(TARGET, requests, 2, 8)) == 2
