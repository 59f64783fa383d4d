"""Requests for the tests of refusals, and the shape that every error has."""

from typing import Any

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def assert_error(body: Any, code: str | None = None, param: str | None = None) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "/" not in body["error"]["message"].replace("and/or", "") and "Traceback" not in body["error"]["message"]
    if code:
        assert body["error"]["code"] == code
    if param:
        assert body["error"]["param"] == param
