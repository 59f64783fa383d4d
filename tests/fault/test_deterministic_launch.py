"""--deterministic on real processes with SmolLM2 in bfloat16: the same bytes alone, together and over two kills of the
worker."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
LIMIT_S = 240.0
SHARED = "count the ships that pass the harbour, one by one, until the evening; " * 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--deterministic", "--dtype", "bfloat16", "--max-total-tokens", "8192", "--chunked-prefill-size", "64")
    with Server(*flags) as it:
        yield it


def answer(server: Server, number: int) -> tuple[list[int], str]:
    """Return ids and log-probabilities of one request; json keeps every bit of the latter."""
    sampling: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "temperature": 0.8 * (number % 2)}
    body = {
        "text": (SHARED if number % 3 else "") + f"{number}: the three primary colours are",
        "sampling_params": {**sampling, "sampling_seed": number},
        "return_logprob": True,
    }
    status, found = server.post("/generate", body, LIMIT_S)
    assert status == 200, found
    return found["output_ids"], json.dumps(found["meta_info"]["output_token_logprobs"])


def test_two_kills_change_no_byte(server: Server) -> None:
    alone = [answer(server, number) for number in range(8)]
    epoch = server.topology()["worker-0"]["epoch"]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda number: answer(server, number), range(8)))
        assert together == alone
        running = [pool.submit(answer, server, number) for number in range(8)]
        for _ in range(2):
            before = server.get("/metrics")[1]
            server.wait_until(lambda before=before: server.get("/metrics")[1] != before)
            time.sleep(1.0)
            assert not all(one.done() for one in running)
            server.kill("worker-0")
            server.wait_until(lambda: server.get("/ready")[0] == 200, LIMIT_S)
        assert [one.result() for one in running] == alone
    assert server.topology()["worker-0"]["epoch"] == epoch + 2
