"""Whole and damaged requests to every route of a launch: a short run of the fuzzer, and a longer one."""

import os

import pytest

from tests.fuzz import http_requests
from tests.fuzz.guarded import until
from tests.support.server import Server

pytestmark = pytest.mark.e2e


def check(cases: object, seed: int, least: int) -> None:
    with Server(*http_requests.FLAGS) as server:
        before = http_requests.answer(server)
        count, findings = http_requests.fuzz(server, cases, seed)  # type: ignore[arg-type]
        assert findings == [] and count >= least
        assert http_requests.answer(server) == before


def test_the_first_requests() -> None:
    check(iter(range(400)), 0, 400)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_new_requests_for_two_minutes() -> None:
    check(until(120), int.from_bytes(os.urandom(4)), 500)
