"""What the checks of all clients share: arguments, a table of checks and their report, a tool and an object.

Needs the standard library alone, since each client has an environment of its own. A check is a function of the base
URL of a server; it raises when the client did not get what the API promises. The last line of the output is the report
as JSON.
"""

import argparse
import asyncio
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

KEY = "client-key"
"""An API key of both servers."""
MODEL = "smollm2"
LIMIT_S = 90

Check = Callable[[str], Any]
ARGUMENTS = argparse.Namespace()
"""What `main` was given."""
CHECKS: list[tuple[str, str, Check]] = []

WEATHER_QUESTION = "What is the weather in Zürich?"
WEATHER_ANSWER = "It has 14 degrees in Zürich."
WEATHER_AT_ONCE = f"{WEATHER_QUESTION} Call at once."
"""Answered by a call without words before it, which some clients take for the answer."""
WEATHER_ARGUMENTS = {"city": "Zürich", "unit": "celsius"}
CAPITAL_QUESTION = "What is the capital of France?"
CAPITAL_ANSWER = "The capital of France is Paris: a city of 2,1 million, “la Ville Lumière” 🗼."
PERSON_QUESTION = "Describe the person Ada Lovelace."
PERSON = {"name": "Ada Lovelace", "age": 36, "skills": ["analysis", "poetry"]}
WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "name of the city"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
PERSON_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "skills": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "skills"],
    "additionalProperties": False,
}


def get_weather(city: str, unit: str) -> str:
    """Return what the tool answers, on which the script's last turn depends."""
    assert (city, unit) == ("Zürich", "celsius"), f"the tool was called with {city!r}, {unit!r}"
    return "14 degrees"


def check(what: str, on: str = "script") -> Callable[[Check], Check]:
    """Register a check of `what`; `on` names the server: script (simulated worker) or model (SmolLM2)."""

    def register(function: Check) -> Check:
        CHECKS.append((what, on, function))
        return function

    return register


def one_is_refused(ask: Callable[[], Any], error_class: type[Exception]) -> None:
    """Ask eight times at once; raise AssertionError unless one is refused with 429 and says when to come again.

    `error_class` is the client's own, with a `status_code` and a `response`."""

    def is_refused(_: int) -> bool:
        try:
            ask()
        except error_class as error:
            facts: Any = error
            return facts.status_code == 429 and "retry-after" in facts.response.headers
        return False

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(is_refused, range(8))), "no request was refused with 429"


def equal(got: Any, wanted: Any) -> None:
    """Raise AssertionError, with both values, unless they are equal."""
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"


@contextmanager
def raises(error: type[BaseException], status: int | None = None) -> Iterator[None]:
    """Expect an exception of the client's own class, with the HTTP status where the class has one."""
    try:
        yield
    except error as caught:
        if status is not None:
            found = getattr(caught, "status_code", None) or getattr(caught, "code", None)
            equal(found and int(found), status)
        return
    raise AssertionError(f"no {error.__name__} was raised")


def main(client: str, *packages: str) -> None:
    """Run the checks against the servers that are named, print a line for each and the report; exits with 1 if any
    failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="", help="of the server with the script, without /v1")
    parser.add_argument("--model-url", default="", help="of the server with SmolLM2")
    parser.add_argument("--only", default="", help="run the checks whose name contains this")
    parser.add_argument("--folder", default="", help="of SmolLM2, for clients that count tokens")
    arguments = parser.parse_args(namespace=ARGUMENTS)
    urls = {"script": arguments.url, "model": arguments.model_url}
    # A proxy does not reach the servers.
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    signal.signal(signal.SIGALRM, _too_long)
    rows = []
    for what, on, function in CHECKS:
        if not urls[on] or arguments.only not in what:
            continue
        started = time.monotonic()
        error = _run(function, urls[on])
        rows.append({"check": what, "on": on, "error": error, "seconds": round(time.monotonic() - started, 2)})
        print(f"{'FAILED' if error else 'ok':<7}{client}: {what} ({on}) {error}", flush=True)
    versions = {package: version(package) for package in packages}
    print(json.dumps({"client": client, "versions": versions, "checks": rows}))
    sys.stdout.flush()
    # A client's threads must not keep the process.
    os._exit(any(row["error"] for row in rows))


def _run(function: Check, url: str) -> str:
    signal.alarm(LIMIT_S)
    try:
        outcome = function(url)
        if inspect.iscoroutine(outcome):
            asyncio.run(outcome)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"[:400].replace("\n", " ")
    finally:
        signal.alarm(0)
    return ""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"no end after {LIMIT_S} s")
