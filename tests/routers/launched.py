"""A router in front of instances of the engine: its command, its process, and what it answers."""

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.clients.environments import FOLDER, Client, make_environment
from tests.support.server import free_port

HERE = Path(__file__).resolve().parent
START_LIMIT_S = 60.0


class Kind(NamedTuple):
    """A router as its package has it: the command in its environment, and flags that every launch of it needs."""

    command: tuple[str, ...]
    flags: tuple[str, ...]


PLAIN = ("--health-check-interval-secs", "1", "--health-failure-threshold", "1", "--health-check-timeout-secs", "1")
KINDS = {
    "sglang-router": Kind(("sglang-router", "launch"), (*PLAIN, "--worker-startup-check-interval", "1")),
    "smg": Kind(("smg", "launch"), PLAIN),
    "vllm-router": Kind(("vllm-router",), (*PLAIN, "--worker-startup-check-interval", "1")),
}


def prepare(name: str) -> None:
    """Make the environment of a router, unless it is there."""
    folder = FOLDER / name
    make_environment(name, Client(folder, (str(folder / "bin" / "python"),), (HERE / "requirements" / f"{name}.txt",)))


class Router:
    """One router process. Use as a context manager; leaving it kills the process.

    Args:
        name: a key of KINDS.
        urls: of the instances.
        policy: its name for the policy.
        flags: more of its flags.
    """

    def __init__(self, name: str, urls: Iterable[str], policy: str, *flags: str) -> None:
        kind, port = KINDS[name], free_port()
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        program = FOLDER / name / "bin" / kind.command[0]
        self._log = tempfile.NamedTemporaryFile(prefix=name, suffix=".log")  # noqa: SIM115
        self._command = [
            str(program), *kind.command[1:], "--host", "127.0.0.1", "--port", str(port), "--policy", policy,
            "--worker-urls", *urls, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()),
            *kind.flags, *flags,
        ]  # fmt: skip

    def __enter__(self) -> "Router":
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        asyncio.run(self._wait_until_it_routes())
        return self

    async def _wait_until_it_routes(self) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        async with aiohttp.ClientSession() as session:
            while True:
                status, _ = await ask(session, self.url, "/v1/completions", completion("ready?", 1))
                if status == 200:
                    return
                if time.monotonic() > deadline_s or self._process.poll() is not None:
                    raise AssertionError(f"{self.name} does not route:\n{self.output()}")
                await asyncio.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def output(self) -> str:
        """Return the end of what the router has written."""
        return Path(self._log.name).read_text()[-4000:]


def completion(prompt: Any, tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a text completion; the simulated worker ends with the last token asked for."""
    return {"model": "smollm2", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **fields}


def chat(text: str, tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    messages = [{"role": "user", "content": text}]
    return {"model": "smollm2", "messages": messages, "max_tokens": tokens, "ignore_eos": True, **fields}


async def ask(session: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Return status and JSON of a POST, of a stream its text; 0 for a status and "" for a text that does not come."""
    status = 0
    try:
        async with session.post(url + path, json=body, timeout=aiohttp.ClientTimeout(60)) as response:
            status = response.status
            is_text = body.get("stream") or status != 200
            return status, await (response.text() if is_text else response.json())
    except (TimeoutError, aiohttp.ClientError, ConnectionError):
        return status, ""


async def ask_all(
    url: str, path: str, bodies: Sequence[dict[str, Any]], concurrency: int, on_answer: Callable[[], None] | None = None
) -> list[Any]:
    """Ask with every body, `concurrency` at a time; returns the answers in the order of the bodies."""
    found: list[Any] = [None] * len(bodies)
    waiting = iter(enumerate(bodies))

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        for number, body in waiting:
            found[number] = await ask(session, url, path, body)
            if on_answer is not None:
                on_answer()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(one_after_the_other(session) for _ in range(concurrency)))
    return found
