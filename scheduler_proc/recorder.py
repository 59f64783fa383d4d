"""Records finished requests as a trace for `quartet advise`: when, how long, which prefix by hash; never text."""

import hashlib
import logging
import secrets
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from quartet.wire.errors import ConfigError
from quartet.wire.frames import ID_BYTES
from scheduler_proc.core.request import Request

log = logging.getLogger(__name__)

HASH_BYTES = 8
"""64 bits: a collision within a million pages has a chance of 3e-8."""


class TraceRecorder:
    """Appends one JSON object a line, in the order in which requests end; readers sort by arrival.

    Args:
        path: the file; replaced. Raises ConfigError if it cannot be written.
        page_tokens: prefixes are hashed page by page.
    """

    def __init__(self, path: Path, page_tokens: int) -> None:
        self._path = path
        try:
            self._file: FileIO | None = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"--record-trace {path} cannot be written: {error.strerror}") from error
        # Drawn for this recording and kept nowhere, so prompts cannot be tried against a trace.
        self._key = secrets.token_bytes(32)
        self._page_tokens = page_tokens
        self._start_s: float | None = None
        self._encode = msgspec.json.Encoder().encode

    def record_all(self, requests: Iterable[Request]) -> None:
        """Write requests that ended by themselves, in that order."""
        for request in requests:
            self.record(request)

    def record(self, request: Request) -> None:
        """Write one request that ended by itself; the others do not show their true lengths. An error ends the
        recording."""
        if self._file is None or not request.output_ids or request.max_new_tokens < 1:
            return
        if self._start_s is None:
            self._start_s = request.timeline.arrived_s
        line: dict[str, Any] = {
            "id": request.request_id or request.rid.hex(),
            "arrival_s": round(max(0.0, request.timeline.arrived_s - self._start_s), 6),
            "max_tokens": request.max_new_tokens,
            "output_tokens": min(len(request.output_ids), request.max_new_tokens),
            "page_hashes": hash_pages(request.prompt_key, self._page_tokens, self._key, repr(request.namespace)),
            "page_tokens": self._page_tokens,
            "prompt_tokens": request.prompt_tokens,
            "tenant": request.namespace[0],
        }
        priority = request.timeline.priority
        if priority is not None:
            line["priority"] = priority
        if request.routing_key:
            line["routing_key"] = request.routing_key
        if request.session_id:
            # Its name may be the user's own words, so only which requests have the same one is recorded.
            line["session"] = self._digest(request.session_id, request.namespace)
        if request.weight != 1.0:
            line["weight"] = request.weight
        try:
            self._file.write(self._encode(line) + b"\n")
        except OSError as error:
            # Recording is the least of what the scheduler does.
            log.warning("--record-trace %s: %s; recording ends", self._path, error.strerror)
            self.close()

    def _digest(self, text: str, namespace: tuple[str, ...]) -> str:
        named = repr((namespace, text)).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(named, digest_size=HASH_BYTES, key=self._key).hexdigest()

    def close(self) -> None:
        """Close the file; what is recorded afterwards is dropped."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None


def hash_pages(prompt_ids: bytes, page_tokens: int, key: bytes, namespace: str = "") -> list[str]:
    """Return the hash of each prefix of `prompt_ids` (int32 bytes) that ends at a page boundary.

    Prompts of different namespaces have no hash in common. `key` keeps prompts from being tried against a trace.
    """
    size = page_tokens * ID_BYTES
    hashes, state = [], hashlib.blake2b(namespace.encode(), digest_size=HASH_BYTES, key=key)
    for at in range(0, len(prompt_ids) // size * size, size):
        state.update(prompt_ids[at : at + size])
        hashes.append(state.copy().hexdigest())
    return hashes
