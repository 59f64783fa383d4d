"""Records two streams of `quartet serve smollm2` whose worker is killed by SIGKILL, and draws them.

    python -m benchmarks.plots.kill_recording

Writes benchmarks/results/kill-worker.json, and docs/images/kill-worker.svg by benchmarks.plots.kill_plot. Both streams
run undisturbed first; RuntimeError is raised unless their text is the same when the worker dies under them.
"""

import asyncio
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.plots.kill_plot import RECORDING, draw
from benchmarks.report import write_json
from benchmarks.serving.served import END_LIMIT_S, READY

PROMPTS = ("Why is the sky blue?", "Tell me a story about a lighthouse.")
TOKENS = 90
EVENTS_BEFORE_KILL = 40
SETTINGS = ("--dtype", "float32", "--max-total-tokens", "8192")
"""In float32 a token does not depend on whether its prefix was decoded or recomputed."""
LIMIT_S = 90.0


@dataclass
class Stream:
    """One stream: its prompt, and each piece of text with the time it arrived."""

    prompt: str
    pieces: list[tuple[float, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(piece for _, piece in self.pieces)


class Server:
    """`quartet serve` as a child process; `lines` are the lines of its standard error with their times."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "quartet.cli.main", "serve", "smollm2", "--port", "0", "--device", "cpu"]
        self._process = subprocess.Popen(
            [*command, *SETTINGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[tuple[float, str]] = []
        threading.Thread(target=self._read_errors, daemon=True).start()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            # Without the server's own time, which counts from its start.
            self.lines.append((time.monotonic(), re.sub(r"^\[.*?\] ", "", line.rstrip())))

    def wait_until_ready(self) -> str:
        """Return the URL; raises RuntimeError if the server ends before it is ready."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := READY.search(line):
                return found[1]
        raise RuntimeError("the server did not start:\n" + "\n".join(line for _, line in self.lines))

    def close(self) -> None:
        """End the server."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Client:
    """Runs both streams on one server."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, url
        self.killed: dict[str, Any] = {}

    async def run(self, kills: bool) -> list[Stream]:
        """Run both streams to their ends; with `kills`, kill the worker when each has had EVENTS_BEFORE_KILL events."""
        streams = [Stream(prompt) for prompt in PROMPTS]
        await asyncio.gather(*(self._stream(stream, streams if kills else []) for stream in streams))
        return streams

    async def _stream(self, stream: Stream, to_disturb: list[Stream]) -> None:
        body = {
            "messages": [{"role": "user", "content": stream.prompt}],
            "stream": True,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": 0.7,
            "seed": 7,
        }
        async with self._http.post(f"{self._url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(f"a stream ended with {event['error']}")
                if text := event["choices"][0]["delta"].get("content"):
                    stream.pieces.append((time.monotonic(), text))
                is_due = to_disturb and all(len(one.pieces) >= EVENTS_BEFORE_KILL for one in to_disturb)
                if is_due and not self.killed:
                    await self._kill()

    async def _kill(self) -> None:
        self.killed = {"process": "worker-0"}
        async with self._http.get(f"{self._url}/topology") as response:
            processes = (await response.json())["processes"]
        pid = next(row["pid"] for row in processes if row["role"] == "worker")
        os.kill(pid, signal.SIGKILL)
        self.killed |= {"pid": pid, "s": time.monotonic()}


async def record(server: Server) -> dict[str, Any]:
    """Run the streams twice, the second time with a kill; return the recording, its times in seconds from the start."""
    url = await asyncio.to_thread(server.wait_until_ready)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http:
        client = Client(http, url)
        calm = await client.run(kills=False)
        start_s = time.monotonic()
        streams = await client.run(kills=True)
    if [one.text for one in streams] != [one.text for one in calm]:
        raise RuntimeError("the kill changed the text of a stream")

    def since(s: float) -> float:
        return round(s - start_s, 3)

    return {
        "what": "two streams of one server, whose worker is killed by SIGKILL; their text is that of a run without it",
        "command": "python -m benchmarks.plots.kill_recording",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores of an {_processor()}, no GPU",
        "settings": f"SmolLM2-135M-Instruct, {' '.join(SETTINGS)}",
        "killed": {**client.killed, "s": since(client.killed["s"])},
        "log": [(since(s), line) for s, line in server.lines if s >= start_s],
        "streams": [
            {"prompt": one.prompt, "pieces": [(since(s), piece) for s, piece in one.pieces]} for one in streams
        ],
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else "unknown processor"


def main() -> int:
    """Record, write and draw."""
    server = Server()
    try:
        recording = asyncio.run(record(server))
    finally:
        server.close()
    write_json(recording, str(RECORDING))
    print(draw(recording))
    return 0


if __name__ == "__main__":
    sys.exit(main())
