"""Two instances of the engine behind each router, unmodified: `make test-routers`, or `python -m tests.routers.run`.

Makes an environment for each router under .clients/, launches pairs of instances with the simulated worker, and writes
results.md beside this file. Needs a package index.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.environments import FOLDER
from tests.routers.launched import KINDS, Router, ask, ask_all, chat, completion, prepare
from tests.support.server import Server, free_port

HERE = Path(__file__).resolve().parent
ENGINE = ("smollm2", "--simulated-worker", "--simulated-step-ms", "4", "--page-size", "16")

GROUPS, ROUNDS, PREFIX_WORDS = 49, 8, 500
"""Of the shared-prefix set: prompts of a group share the first words, and the groups take turns, as users of long
conversations do, four at once. All groups together need more than a pool, half of them less. Their number is odd, so
that round-robin sends a group now here, now there."""
TURNS_AT_ONCE = 4
POOL_TOKENS = 20_000
KILLED_AFTER, REQUESTS, CONCURRENCY = 60, 240, 16
HELD = 20

Row = tuple[str, str, str]
"""Router, what was done, what came of it. It failed if the last begins with FAILED."""


@contextmanager
def pair(*flags: str) -> Iterator[list[Server]]:
    """Launch two instances."""
    with Server(*ENGINE, *flags) as first, Server(*ENGINE, *flags) as second:
        yield [first, second]


def fail_over(name: str, is_streamed: bool, number: signal.Signals = signal.SIGKILL) -> str:
    """End one instance of two under load, by a signal to its supervisor."""
    with pair() as servers, Router(name, [server.url for server in servers], "round_robin") as router:
        answered, started_s = 0, time.monotonic()

        def on_answer() -> None:
            nonlocal answered
            answered += 1
            if answered == KILLED_AFTER:
                servers[0].process.send_signal(number)

        bodies = [chat(f"Question {at}", 24, stream=is_streamed) for at in range(REQUESTS)]
        found = asyncio.run(ask_all(router.url, "/v1/chat/completions", bodies, CONCURRENCY, on_answer))
        seconds = time.monotonic() - started_s
        statuses = [status for status, _ in found]
        whole = sum(
            status == 200 and bool(answer if not is_streamed else "[DONE]" in answer) for status, answer in found
        )
    told = f"{statuses.count(200)} of {REQUESTS} are 200, {whole} whole, {seconds:.1f} s"
    # A stream that is open when its instance dies is cut: a router has no means to go on with it.
    most_cut = CONCURRENCY if is_streamed and number is signal.SIGKILL else 0
    return told if statuses.count(200) == REQUESTS and whole >= REQUESTS - most_cut else f"FAILED: {told}"


def shared_prefixes() -> list[dict[str, Any]]:
    """Return the requests, round by round."""
    draw = random.Random(1)
    words = ["river", "stone", "cloud", "seven", "green", "paper", "lamp", "north", "salt", "wheel"]
    prefixes = [" ".join(draw.choice(words) for _ in range(PREFIX_WORDS)) for _ in range(GROUPS)]
    return [completion(f"{prefix} question {turn}", 4) for turn in range(ROUNDS) for prefix in prefixes]


def hit_rate(name: str, policy: str) -> float:
    """Return the share of prompt tokens that were cached."""
    with (
        pair("--max-total-tokens", str(POOL_TOKENS)) as servers,
        Router(name, [server.url for server in servers], policy) as router,
    ):
        found = asyncio.run(ask_all(router.url, "/v1/completions", shared_prefixes(), TURNS_AT_ONCE))
    assert all(status == 200 for status, _ in found), found[0]
    usages = [answer["usage"] for _, answer in found]
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    return float(cached / sum(usage["prompt_tokens"] for usage in usages))


def cache_aware(name: str) -> str:
    """Compare the cached share under cache-aware routing with that under round-robin."""
    plain, aware = hit_rate(name, "round_robin"), hit_rate(name, "cache_aware")
    told = f"cached: {plain:.0%} round-robin, {aware:.0%} cache-aware"
    return told if aware > 0.5 and aware >= 2 * plain else f"FAILED: {told}"


def kv_aware(is_chat: bool) -> str:
    """Fill one instance with a prompt, then ask the router: the holder must get it."""
    ports = [free_port() for _ in range(2)]
    configs = [json.dumps({"endpoint": f"tcp://127.0.0.1:{port}"}) for port in ports]
    with (
        Server(*ENGINE, "--kv-events-config", configs[0]) as first,
        Server(*ENGINE, "--kv-events-config", configs[1]) as second,
    ):
        urls = [first.url, second.url]
        flags = ["--kv-event-block-size", "16", "--kv-event-model", "smollm2"]
        for url, port in zip(urls, ports, strict=True):
            flags += ["--kv-event-source", f"{url}=tcp://127.0.0.1:{port}"]
        with Router("vllm-router", urls, "kv_aware", *flags) as router:
            held = asyncio.run(_to_holder(router.url, urls, is_chat))
    told = f"{held} of {HELD} to the holder"
    return told if held == HELD else f"FAILED: {told}"


async def _to_holder(router_url: str, urls: list[str], is_chat: bool) -> int:
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    draw, held = random.Random(2), 0
    async with aiohttp.ClientSession() as session:
        # Until the router has subscribed it learns of nothing.
        await asyncio.sleep(2.0)
        for number in range(HELD):
            ids = [draw.randrange(100, 40_000) for _ in range(200)]
            body = chat(f"{number} " + " ".join(map(str, ids)), 2) if is_chat else completion(ids, 2)
            status, _ = await ask(session, urls[draw.randrange(2)], path, body)
            assert status == 200
            await asyncio.sleep(0.2)
            status, answer = await ask(session, router_url, path, body)
            assert status == 200, answer
            held += answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    return held


def checks(name: str) -> dict[str, Callable[[], str]]:
    """Return what is done with a router, by its name in the results."""
    found = {
        "one of two instances is killed under load": lambda: fail_over(name, False),
        "the same with streams": lambda: fail_over(name, True),
        "one is drained (SIGTERM) under load, streams": lambda: fail_over(name, True, signal.SIGTERM),
        "a shared-prefix set": lambda: cache_aware(name),
    }
    if name == "vllm-router":
        found["kv_aware, prompts of token ids"] = lambda: kv_aware(False)
        found["kv_aware, chat through /tokenize"] = lambda: kv_aware(True)
    return found


def main() -> int:
    """Run the checks of the routers that are named, or of all; returns 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("routers", nargs="*", metavar="ROUTER", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--only", default="", help="run the checks whose name contains this, and write no results")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.routers or list(KINDS):
        prepare(name)
        for what, function in checks(name).items():
            if arguments.only in what:
                rows.append((name, what, function()))
                print(*rows[-1], sep=" | ", flush=True)
    if not arguments.routers and not arguments.only:
        (HERE / "results.md").write_text(page(rows))
    return int(any(result.startswith("FAILED") for _, _, result in rows))


def page(rows: list[Row]) -> str:
    """Return the page of results."""
    versions = ", ".join(f"{name} {version(name)}" for name in KINDS)
    table = ["| router | what | result |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    parts = [
        "# Routers that were run",
        f"Written by `make test-routers`: two instances with the simulated worker behind\n{versions}.",
        "\n".join(table),
    ]
    return "\n\n".join(parts) + "\n"


def version(name: str) -> str:
    """Return the version of a router that is installed."""
    (folder,) = (FOLDER / name / "lib").glob("python3*")
    (found,) = metadata.distributions(name=name, path=[str(folder / "site-packages")])
    return found.version


if __name__ == "__main__":
    sys.exit(main())
