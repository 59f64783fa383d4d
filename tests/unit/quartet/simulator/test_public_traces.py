"""Public traces: each format by a made-up sample, times scaled and cut, prefixes shared as the file says."""

import json
from pathlib import Path

import pytest

from quartet.cli.main import main
from quartet.simulator.prompts import PromptMaker
from quartet.simulator.request import Workload
from quartet.simulator.trace import TraceError
from quartet.simulator.trace_source import TraceOptions, load_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
REDUCED = "arrival_ms,input_tokens,output_tokens\n0,374,44\n4314,396,0\n"
MOONCAKE = [
    {"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1536, "output_length": 7, "hash_ids": [0, 1, 3]},
]
BLOCKS = "arrival_ms,input_tokens,output_tokens,blocks512\n0,1200,5,0-2\n3000,1536,7,0-1 3\n"
AGENTS = """agent,session,turn,start_ms,input_chars,shared_prefix_chars,output_chars
a,0,0,0,400,0,40
a,0,1,2000,800,400,80
a,1,0,0,400,0,40
"""
ROUNDS = """session,round,provider,start_ms,input_tokens,cached_prefix_tokens,new_tokens,output_tokens
0,0,x,0,100,0,100,9
0,1,x,1500,160,100,60,9
"""
LENGTHS = "input_tokens,output_tokens\n10,1\n20,2\n30,3\n"
TENANTS = {
    "what": "ServeGen",
    "quantiles": [0.5, 1.0],
    "clients": [
        {
            "client": 7,
            "windows": [[0, 1.0, 1.0, "Gamma", 1.0, 1.0], [600, 5.0, 1.0, "Weibull", 1.0, 0.2]],
            "lengths": [[0, [10, 20], [1, 3]], [600, [1000, 2000], [5, 5]]],
        },
        {"client": 8, "windows": [], "lengths": []},
    ],
}


def load(tmp_path: Path, text: str, **options: float) -> list[Workload]:
    path = tmp_path / "trace"
    path.write_text(text)
    return load_trace(path, TraceOptions(**options))  # type: ignore[arg-type]


def shapes(requests: list[Workload]) -> list[tuple[float, int, int]]:
    return [(round(one.arrival_s, 3), one.input_tokens, one.output_tokens) for one in requests]


def shared_tokens(first: Workload, second: Workload) -> int:
    maker = PromptMaker()
    a, b = maker.make(first), maker.make(second)
    return next((at for at in range(0, min(len(a), len(b)), 4) if a[at : at + 4] != b[at : at + 4]), len(a)) // 4


def test_azure_as_published_and_reduced(tmp_path: Path) -> None:
    assert shapes(load(tmp_path, AZURE)) == [(0.0, 374, 44), (4.315, 396, 109)]
    # An answer of no token is not a thing that the engine gives.
    assert shapes(load(tmp_path, REDUCED)) == [(0.0, 374, 44), (4.314, 396, 1)]


def test_mooncake_as_published_and_reduced(tmp_path: Path) -> None:
    published = load(tmp_path, "\n".join(map(json.dumps, MOONCAKE)))
    assert published == load(tmp_path, BLOCKS)
    assert shapes(published) == [(0.0, 1200, 5), (3.0, 1536, 7)]
    # Two whole blocks; what is left of the first prompt is its own.
    assert shared_tokens(*published) == 1024


def test_sessions_begin_at_a_rate_and_keep_their_pace(tmp_path: Path) -> None:
    turns = sorted(load(tmp_path, AGENTS, rate=0.01), key=lambda one: (one.session, one.arrival_s))
    assert [(one.session, one.input_tokens, one.output_tokens) for one in turns] == [
        ("a-0", 100, 10),
        ("a-0", 200, 20),
        ("a-1", 100, 10),
    ]
    assert turns[1].arrival_s - turns[0].arrival_s == 2.0 and turns[2].arrival_s > 0
    assert shared_tokens(turns[0], turns[1]) == 96 and shared_tokens(turns[0], turns[2]) == 0
    rounds = load(tmp_path, ROUNDS, rate=1)
    assert shapes(rounds) == [(0.0, 100, 9), (1.5, 160, 9)] and shared_tokens(*rounds) == 96


def test_lengths_alone_arrive_at_a_rate(tmp_path: Path) -> None:
    first, again = (load(tmp_path, LENGTHS, rate=2.0, seed=3) for _ in range(2))
    assert first == again and [one.input_tokens for one in first] == [10, 20, 30]
    assert first[0].arrival_s < first[1].arrival_s < first[2].arrival_s
    with pytest.raises(TraceError, match="give --rate, in requests a second"):
        load(tmp_path, LENGTHS)


def test_tenants_are_drawn_from_their_windows(tmp_path: Path) -> None:
    requests = load(tmp_path, json.dumps(TENANTS))
    early = [one for one in requests if one.arrival_s < 600]
    late = [one for one in requests if one.arrival_s >= 600]
    assert {one.tenant for one in requests} == {"client-7"}
    assert 500 < len(early) < 700 and 2700 < len(late) < 3300
    assert {one.input_tokens for one in early} <= set(range(10, 21))
    assert all(1000 <= one.input_tokens <= 2000 and one.output_tokens == 5 for one in late)
    assert requests == load(tmp_path, json.dumps(TENANTS))
    assert len(load(tmp_path, json.dumps(TENANTS), first_minutes=1)) < 100


def test_speed_drops_nothing_and_first_counts_minutes_of_the_trace(tmp_path: Path) -> None:
    assert shapes(load(tmp_path, REDUCED, speed=2.0)) == [(0.0, 374, 44), (2.157, 396, 1)]
    assert shapes(load(tmp_path, REDUCED, speed=0.5, first_minutes=1)) == [(0.0, 374, 44), (8.628, 396, 1)]
    assert len(load(tmp_path, REDUCED, first_minutes=0.05)) == 1
    assert [one.max_tokens for one in load(tmp_path, REDUCED, max_tokens=64)] == [64, 64]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", "unknown columns a, b; a trace is one of recorded JSONL, Azure CSV"),
        ("arrival_ms,input_tokens,output_tokens\nx,1,1\n", "invalid literal for int"),
        ("arrival_ms,input_tokens,output_tokens\n-5,1,1\n", "request 1: arrival_s -0.005 must be 0 or more"),
        ('{"timestamp": 0, "hash_ids": [1]}\n', "KeyError"),
        ('{"clients": 5}', "TypeError"),
        ("", "unknown columns"),
        ("arrival_ms,input_tokens,output_tokens\n", "no requests"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(TraceError, match=expected):
        load(tmp_path, text)


def test_the_command_line_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "blocks.csv"
    path.write_text(BLOCKS)
    assert main(["simulate", "--trace", str(path), "--speed", "3", "--first", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] == 2
    assert main(["simulate", "--trace", str(path), "--speed", "0"]) == 2
    assert "--speed: 0.0 is not a number above 0" in capsys.readouterr().err
