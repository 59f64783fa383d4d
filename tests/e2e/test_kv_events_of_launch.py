"""KV-cache events of a real launch: what a consumer holds after requests, and after deaths of worker and scheduler."""

import json

import pytest
import zmq

from tests.support.kv_follower import Follower
from tests.support.server import Server, free_port

pytestmark = pytest.mark.e2e
PAGE = 16
PROMPT = list(range(1000, 1000 + 5 * PAGE))


class Consumer:
    """Asks for every message that is kept; reads them into a follower."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._endpoint = endpoint

    def follower(self) -> Follower:
        """Return what a consumer holds that reads all messages of the scheduler process that runs."""
        follower, expected = Follower(PAGE), 0
        # A socket of its own for each: nothing of an earlier process is left in it.
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, 10_000)
            socket.connect(self._endpoint)
            socket.send_multipart((b"", bytes(8)))
            while True:
                _, _, sequence, payload = socket.recv_multipart()
                if int.from_bytes(sequence, "big", signed=True) < 0:
                    return follower
                assert int.from_bytes(sequence, "big") == expected
                follower.take(payload)
                expected += 1

    def close(self) -> None:
        """Close the context."""
        self._context.term()


def test_a_consumer_holds_what_the_engine_holds_through_deaths() -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    config = {"endpoint": f"tcp://127.0.0.1:{free_port()}", "replay_endpoint": endpoint}
    consumer = Consumer(endpoint)
    with Server("--simulated-worker", "--kv-events-config", json.dumps(config)) as server:

        def complete(prompt: list[int]) -> int:
            status, answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
            assert status == 200
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        def held() -> set[tuple[int, ...]]:
            return {tokens for _, tokens in consumer.follower().prefixes.values()}

        assert held() == set()
        complete(PROMPT)
        assert held() == {tuple(PROMPT[:end]) for end in range(PAGE, len(PROMPT) + 1, PAGE)}
        for name in ("worker-0", "scheduler-0"):
            server.kill(name)
            server.wait_until(lambda name=name: server.topology()[name]["restarts"] == 1 and server.is_complete(), 60)
            assert held() == set()
            assert complete(PROMPT[: 2 * PAGE + 1]) == 0
            assert len(held()) == 2
    consumer.close()
