"""Requests of the commands to a running engine over HTTP: one client, one way to name the engine, one kind of error."""

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from quartet.wire.config import ServerConfig
from quartet.wire.errors import EngineError

Shape = TypeVar("Shape")

DEFAULT_URL = "http://{0.host}:{0.port}".format(ServerConfig())
CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 120.0
"""A server that sends nothing for this long counts as dead; quartet's sends a comment every 15 s."""
CUT_OFF = "the server closed the connection before the answer was complete"


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the engine's address and the key to send, with their environment variables."""
    url = os.environ.get("QUARTET_URL", DEFAULT_URL)
    parser.add_argument("--url", default=url, help="of the engine, with or without /v1 (default: %(default)s)")
    parser.add_argument("--api-key", metavar="KEY", default=default_key(), help="key to send")


def default_key() -> str:
    """Return the key of the environment: the first one, since the variable may list several for the server."""
    return next((one for one in os.environ.get("QUARTET_API_KEY", "").split(",") if one), "")


def ask_engine(arguments: argparse.Namespace, path: str, shape: type[Shape]) -> Shape:
    """Return what the engine that the arguments name gives at `path`, as a `shape`. Raises EngineError."""

    async def ask() -> Shape:
        async with EngineClient(arguments.url, arguments.api_key) as engine:
            return await engine.get(path, shape)

    return asyncio.run(ask())


class EngineClient:
    """One engine. Use it as a context; every method raises EngineError, whose message is for the user."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self.address = _address(url)
        """The URL without /v1."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def __aenter__(self) -> "EngineClient":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, shape: type[Shape]) -> Shape:
        """Return the JSON at `path` as a `shape`, a type that msgspec decodes."""
        return await self._decoded("GET", path, None, shape)

    async def post(self, path: str, body: dict[str, Any] | None, shape: type[Shape]) -> Shape:
        """Return the JSON that is the answer to `body`, as a `shape`."""
        return await self._decoded("POST", path, body, shape)

    async def events(self, path: str, body: dict[str, Any] | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the decoded server-sent events of an answer until [DONE]; a request without a body is a GET.

        Closing the iterator closes the connection, which stops the answer. Raises EngineError for an error event, and
        when the stream ends before [DONE].
        """
        async with self._response("GET" if body is None else "POST", path, body) as response:
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise EngineError(_message(event, "the server reported an error"))
                yield event
        raise EngineError(CUT_OFF)

    async def _decoded(self, method: str, path: str, body: dict[str, Any] | None, shape: type[Shape]) -> Shape:
        async with self._response(method, path, body) as response:
            content = await response.read()
        try:
            return msgspec.json.decode(content, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EngineError(f"what answers at {self.address} is no engine: {path} gives {error}") from None

    @contextlib.asynccontextmanager
    async def _response(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self.address + path, json=body) as response:
                if response.status != 200:
                    raise EngineError(await self._refusal(response, path))
                yield response
        except TimeoutError:
            raise EngineError(f"{self.address} has sent nothing for {SILENCE_TIMEOUT_S:.0f} s") from None
        except aiohttp.ClientPayloadError:
            raise EngineError(CUT_OFF) from None
        except aiohttp.ClientConnectorError as error:
            raise EngineError(f"no engine answers at {self.address}: {error.os_error.strerror or error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise EngineError(f"no engine answers at {self.address}: {reason}") from None

    async def _refusal(self, response: aiohttp.ClientResponse, path: str) -> str:
        if response.status in (401, 403):
            return f"the engine at {self.address} refuses the key: give the right one by --api-key or QUARTET_API_KEY"
        fallback = f"HTTP {response.status} {response.reason} at {self.address}{path}"
        try:
            return _message(json.loads(await response.read()), fallback)
        except ValueError:
            return fallback


def _address(url: str) -> str:
    """Return the root of a server's URL; the scheme may be left out."""
    try:
        parts = URL(url if "://" in url else f"http://{url}")
    except ValueError:
        parts = URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise EngineError(f"{url!r} is no address of a server, such as {DEFAULT_URL}")
    return str(parts.with_query(None).with_fragment(None)).rstrip("/").removesuffix("/v1")


def _message(body: Any, fallback: str) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else fallback
