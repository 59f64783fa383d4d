"""Two hundred outputs over twenty schemas through all processes, also while workers are killed."""

import threading
from collections.abc import Iterator

import pytest

from tests.support.json_schemas import SCHEMAS
from tests.support.server import Server
from tests.support.structured_runs import problems

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker", "--simulated-step-ms", "0", "--restart-limit", "100") as running:
        yield running


def test_two_hundred_of_two_hundred_follow_their_schema(server: Server) -> None:
    count, wrong = problems(server)
    assert (count, wrong) == (10 * len(SCHEMAS), [])


def test_every_kind_of_constraint_holds(server: Server) -> None:
    for field, value, outputs in (
        ("choice", ["red", "green"], {"red", "green"}),
        ("regex", "(ab|cd){2}", {"abab", "abcd", "cdab", "cdcd"}),
        ("grammar", 'start: "x" | "yy"', {"x", "yy"}),
        ("ebnf", 'root ::= "p" | "qq"', {"p", "qq"}),
        ("structured_outputs", {"choice": ["one", "two"]}, {"one", "two"}),
        ("guided_regex", "[0-3]", {"0", "1", "2", "3"}),
    ):
        status, answer = server.post("/v1/completions", {"prompt": "Say:", "max_tokens": 20, "n": 4, field: value})
        assert status == 200, answer
        assert {choice["text"] for choice in answer["choices"]} <= outputs
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}


def test_a_grammar_that_is_wrong_is_a_400_that_names_its_field(server: Server) -> None:
    status, answer = server.post("/v1/completions", {"prompt": "x", "guided_regex": "("})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_grammar", "guided_regex")
    assert "unclosed group" in answer["error"]["message"]


@pytest.mark.slow
def test_they_do_so_while_workers_and_tokenizers_are_killed() -> None:
    flags = ("--simulated-worker", "--simulated-step-ms", "5", "--restart-limit", "100")
    done = threading.Event()
    with Server(*flags) as server:

        def kill() -> None:
            roles = ["worker-0", "worker-0", "tokenizer-0"]
            while not done.wait(1.5):
                if roles and server.is_complete():
                    server.kill(roles.pop())

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            count, wrong = problems(server)
        finally:
            done.set()
            killer.join()
        assert (count, wrong) == (10 * len(SCHEMAS), [])
        assert server.topology()["worker-0"]["restarts"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("is_disturbed", [False, True])
def test_the_real_model_follows_every_schema(is_disturbed: bool) -> None:
    done = threading.Event()
    with Server("--dtype", "float32", "--max-total-tokens", "16384", "--restart-limit", "100") as server:

        def kill() -> None:
            while is_disturbed and not done.wait(20.0):
                if server.is_complete():
                    server.kill("worker-0")

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            count, wrong = problems(server)
        finally:
            done.set()
            killer.join()
        assert (count, wrong) == (10 * len(SCHEMAS), [])
        assert (server.topology()["worker-0"]["restarts"] > 0) == is_disturbed
