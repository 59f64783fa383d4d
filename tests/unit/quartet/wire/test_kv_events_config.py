"""--kv-events-config: which text is taken, what it means, and which addresses are refused."""

import json

import pytest

from quartet.settings import build_config
from quartet.wire.errors import ConfigError
from quartet.wire.kv_events import host_and_port, is_bound, is_loopback, parse_kv_events


def build(text: str, **flags: str) -> None:
    build_config({"server.kv_events_config": text, **flags}, {})


def test_what_vllm_and_sglang_document_is_taken() -> None:
    whole = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557", "topic": "kv@pod@model"}
    config = parse_kv_events(json.dumps({**whole, "replay_endpoint": "tcp://*:5558", "hwm": 10, "buffer_steps": 20}))
    assert config is not None and config.endpoints == ("tcp://*:5557", "tcp://*:5558")
    short = parse_kv_events('{"publisher": "zmq", "topic": "kv-events"}')
    assert short is not None and short.endpoint == "tcp://127.0.0.1:5557" and short.encoding == "map"


@pytest.mark.parametrize("text", ["", '{"enable_kv_cache_events": false}', '{"publisher": "null"}'])
def test_what_turns_events_off(text: str) -> None:
    assert parse_kv_events(text) is None
    build(text, **{"scheduler.disable_radix_cache": "true"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON object"),
        ("[]", "JSON object"),
        ('{"endpiont": "tcp://*:1"}', "endpiont"),
        ('{"encoding": "list"}', "encoding"),
        ('{"publisher": "nats"}', "publisher"),
        ('{"buffer_steps": 0}', "buffer_steps"),
        ('{"endpoint": "tcp://*"}', "not an endpoint"),
        ('{"endpoint": "tcp://*:0"}', "not an endpoint"),
        ('{"endpoint": "tcp://127.0.0.1:70000"}', "not an endpoint"),
        ('{"endpoint": "http://127.0.0.1:5557"}', "not an endpoint"),
        ('{"endpoint": "ipc://relative"}', "not an endpoint"),
        ('{"endpoint": "inproc://events"}', "not an endpoint"),
        ('{"replay_endpoint": "tcp://127.0.0.1:5557"}', "two ports"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"--kv-events-config") as refused:
        build(text)
    assert words in str(refused.value)


@pytest.mark.parametrize("address", ["tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://[::]:5557", "tcp://epp.svc:5557"])
def test_an_address_that_others_reach_needs_insecure(address: str) -> None:
    for text in (json.dumps({"endpoint": address}), json.dumps({"replay_endpoint": address})):
        with pytest.raises(ConfigError, match="--insecure"):
            build(text)
        build(text, **{"server.insecure": "true"})


def test_events_without_a_cache_are_refused() -> None:
    with pytest.raises(ConfigError, match="drop --disable-radix-cache"):
        build("{}", **{"scheduler.disable_radix_cache": "true"})


@pytest.mark.parametrize(
    ("endpoint", "binds", "is_local", "place"),
    [
        ("tcp://*:5557", True, False, ("*", 5557)),
        ("tcp://[::]:5557", True, False, ("[::]", 5557)),
        ("tcp://127.0.0.1:5557", True, True, ("127.0.0.1", 5557)),
        ("tcp://[::1]:5557", True, True, ("[::1]", 5557)),
        ("tcp://localhost:5557", True, True, ("localhost", 5557)),
        ("tcp://10.0.0.9:5557", False, False, ("10.0.0.9", 5557)),
        ("tcp://epp.svc:5557", False, False, ("epp.svc", 5557)),
        ("ipc:///run/events", True, True, None),
    ],
)
def test_who_binds_and_who_reaches_it(
    endpoint: str, binds: bool, is_local: bool, place: tuple[str, int] | None
) -> None:
    assert (is_bound(endpoint), is_loopback(endpoint), host_and_port(endpoint)) == (binds, is_local, place)
