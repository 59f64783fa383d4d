"""Two turns of one session through the API of a launch that knows sessions, on the bundled model."""

import pytest

from tests.support.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_second_turn_of_a_session_finds_the_first_cached() -> None:
    """SES-1, SES-3: with an id from the header and from the body; the metrics count the turn."""
    with Server("--schedule-policy", "session", "--radix-eviction-policy", "session") as server:
        for start in ("Once", "Twice"):
            # Steps have to be measured before KV is held.
            server.post("/v1/completions", {"prompt": f"{start} upon a time " * 40, "max_tokens": 12})
        messages = [{"role": "user", "content": "Tell me about the history of the city of Paris. " * 20}]
        fields = {"max_tokens": 24, "temperature": 0, "ignore_eos": True, "session_id": "a"}
        status, first = server.post("/v1/chat/completions", {"messages": messages, **fields})
        assert status == 200 and first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        messages += [first["choices"][0]["message"], {"role": "user", "content": "And of its river?"}]
        status, second = server.post("/v1/chat/completions", {"messages": messages, **fields})
        assert status == 200
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= first["usage"]["prompt_tokens"] // 16 * 16
        turns = [line for line in server.get("/metrics")[1].splitlines() if "session_turns_total{" in line]
        assert len(turns) == 1 and float(turns[0].rpartition(" ")[2]) == 1
