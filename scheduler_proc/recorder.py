"""Records finished requests as a trace for `quartet advise`: when, how long, which prefix by hash; never text."""

import hashlib
import secrets
from collections.abc import Iterable
from io import BufferedWriter
from pathlib import Path

import msgspec

from quartet.wire.errors import ConfigError
from quartet.wire.frames import ID_BYTES
from scheduler_proc.core.request import Request

HASH_BYTES = 8


class TraceRecorder:
    """Appends one JSON object a line, in the order in which requests end; readers sort by arrival.

    Args:
        path: the file; replaced. Raises ConfigError if it cannot be written.
        page_tokens: prefixes are hashed page by page.
    """

    def __init__(self, path: Path, page_tokens: int) -> None:
        try:
            self._file: BufferedWriter = path.open("wb")
        except OSError as error:
            raise ConfigError(f"--record-trace {path} cannot be written: {error.strerror}") from error
        # Drawn for this recording and thrown away, so that nobody can try prompts against a trace.
        self._key = secrets.token_bytes(32)
        self._page_tokens = page_tokens
        self._start_s: float | None = None
        self._encode = msgspec.json.Encoder().encode

    def record_all(self, requests: Iterable[Request]) -> None:
        """Write requests that ended by themselves, in that order."""
        for request in requests:
            self.record(request)

    def record(self, request: Request) -> None:
        """Write one request that ended by itself; the rest says nothing about true lengths."""
        if not request.output_ids or request.max_new_tokens < 1:
            return
        if self._start_s is None:
            self._start_s = request.timeline.arrived_s
        line = {
            "arrival_s": round(max(0.0, request.timeline.arrived_s - self._start_s), 6),
            "max_tokens": request.max_new_tokens,
            "output_tokens": min(len(request.output_ids), request.max_new_tokens),
            "page_hashes": self._hashes(request),
            "page_tokens": self._page_tokens,
            "prompt_tokens": request.prompt_tokens,
            "tenant": request.namespace[0],
        }
        priority = request.timeline.priority
        if priority is not None:
            line["priority"] = priority
        self._file.write(self._encode(line) + b"\n")
        self._file.flush()

    def _hashes(self, request: Request) -> list[str]:
        size = self._page_tokens * ID_BYTES
        key = request.prompt_key
        state = hashlib.blake2b(repr(request.namespace).encode(), digest_size=HASH_BYTES, key=self._key)
        hashes = []
        for at in range(0, len(key) // size * size, size):
            state.update(key[at : at + size])
            hashes.append(state.copy().hexdigest())
        return hashes

    def close(self) -> None:
        """Close the file."""
        self._file.close()
