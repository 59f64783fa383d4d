"""The engine as a deployment of Ray Serve: each replica starts an engine of its own and passes requests on to it.

    pip install "ray[serve]==2.60.0"
    serve run engine:app                                    # two replicas of the bundled model
    serve run engine:build arguments="/models/qwen3-8b" replicas=4 gpus=1

The command `quartet` may be of another environment; QUARTET names it. Scaling, restarts and placement are Ray's; what
an engine recovers from by itself, the death of one of its processes, Ray does not see.
"""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

START_LIMIT_S = 900.0
DRAIN_S = 30.0
HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
"""Headers of one connection, which are not passed on."""


@serve.deployment(
    health_check_period_s=5,
    health_check_timeout_s=5,
    graceful_shutdown_timeout_s=DRAIN_S + 5,
    max_ongoing_requests=1000,
)
class Engine:
    """One replica: an engine as a child process, and an HTTP client of it.

    Args:
        arguments: of `quartet serve`.
    """

    def __init__(self, arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [os.environ.get("QUARTET", "quartet"), "serve", *shlex.split(arguments), "--port", str(port)]
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen([*command, "--shutdown-timeout", str(DRAIN_S)])
        self._session: aiohttp.ClientSession | None = None
        self._wait_until_it_listens(port)

    def _wait_until_it_listens(self, port: int) -> None:
        """Return once the engine accepts connections; its /health, which Ray asks for, tells when it is ready."""
        deadline_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"the engine has ended with exit code {self._process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the engine does not listen within {START_LIMIT_S:g} s")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        return self._session

    async def check_health(self) -> None:
        """Raise if the engine has ended: Ray then replaces the replica. A recovery inside the engine is its own."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the engine has ended with exit code {self._process.returncode}")

    async def __call__(self, request: Request) -> Response:
        """Pass a request on, and its answer back as it comes."""
        target = self._url + request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        answer = await self._client().request(request.method, target, data=await request.body(), headers=headers)
        passed_on = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
        passed_on["x-replica"] = serve.get_replica_context().replica_id.unique_id
        return StreamingResponse(_chunks(answer), answer.status, passed_on)

    def __del__(self) -> None:
        """Drain the engine, and wait for its end."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(DRAIN_S + 5)
            except subprocess.TimeoutExpired:
                process.kill()


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the body as it comes. A client that goes closes the connection to the engine, which aborts the request."""
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    except asyncio.CancelledError:
        answer.close()
        raise
    finally:
        answer.release()


def build(options: dict[str, str]) -> serve.Application:
    """Return the application of `serve run engine:build NAME=VALUE ...`."""
    gpus = float(options.get("gpus", 0))
    engine = Engine.options(num_replicas=int(options.get("replicas", 2)), ray_actor_options={"num_gpus": gpus})
    return engine.bind(options.get("arguments", "smollm2"))


app = build({})
