"""What an operator sees of a launch: its log as JSON, metrics of every process, other engines' names."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import Server

pytestmark = pytest.mark.e2e
FLAGS = ("--simulated-worker", "--api-procs", "2", "--log-format", "json", "--log-requests", "--metrics-alias", "vllm")
REQUESTS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FLAGS) as it:
        for number in range(REQUESTS):
            body = {"prompt": f"question {number}", "max_tokens": 4, "ignore_eos": True}
            assert it.post("/v1/completions", body)[0] == 200
        yield it


def families(server: Server) -> dict[str, Any]:
    status, text = server.get("/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


def total(server: Server, name: str) -> float:
    found = families(server)
    return sum(sample.value for sample in found[name].samples) if name in found else 0.0


def test_every_line_of_the_log_is_an_object(server: Server) -> None:
    def entries() -> list[dict[str, Any]]:
        return [json.loads(line) for line in [*server.output]]

    def answered() -> list[dict[str, Any]]:
        return [entry for entry in entries() if entry.get("route") == "/v1/completions"]

    server.wait_until(lambda: len(answered()) == REQUESTS)
    assert all(entry.keys() >= {"time", "level", "process", "message"} for entry in entries())
    assert {(entry["status"], entry["output"], entry["finish"]) for entry in answered()} == {(200, 4, "length")}
    (ready,) = (entry for entry in entries() if "is ready at" in entry["message"])
    assert ready["url"] == server.url and ready["ready_s"] > 0
    asked = [entry["request"] for entry in entries() if "request" in entry]
    assert len(asked) == REQUESTS and asked[0]["params"]["ignore_eos"]


def test_every_metric_has_help_and_is_named(server: Server) -> None:
    found = families(server)
    assert [name for name, family in found.items() if not family.documentation] == []
    assert {sample.labels["model_name"] for family in found.values() for sample in family.samples} == {"smollm2"}


def test_counts_of_several_api_processes_are_complete(server: Server) -> None:
    """Whichever process answers, it tells of all."""
    server.wait_until(lambda: total(server, "quartet_requests") == REQUESTS)
    server.wait_until(lambda: total(server, "vllm:request_success") == REQUESTS)
    (alias,) = families(server)["vllm:request_success"].samples
    assert alias.labels == {"model_name": "smollm2", "engine": "0", "finished_reason": "length"}
    server.wait_until(lambda: total(server, "quartet_generation_tokens") == 4 * REQUESTS)


def test_every_process_shows_what_it_uses(server: Server) -> None:
    names = {*server.topology()}
    server.wait_until(
        lambda: (
            {one.labels["process"] for one in families(server)["quartet_process_resident_memory_bytes"].samples}
            == names
        )
    )
    for sample in families(server)["quartet_process_start_up_seconds"].samples:
        assert 0 < sample.value < 60
    roles = {sample.labels["role"] for sample in families(server)["quartet_ipc_queue_depth"].samples}
    assert roles == {"api", "tokenizer", "scheduler", "worker", "detok"}
