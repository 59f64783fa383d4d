"""A stream over HTTP that notes when each event came, for benchmarks.serving.recovery_times."""

import http.client
import json
import threading
import time
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

LIMIT_S = 60.0


class TimedStream:
    """One text completion that is read by a thread of its own.

    Args:
        url: of the server.
        prompt: text.
        max_tokens: of the answer; `close` ends it before.
    """

    def __init__(self, url: str, prompt: str, max_tokens: int) -> None:
        self.times_s: list[float] = []
        self.failure = ""
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=LIMIT_S)
        fields = {"temperature": 0, "ignore_eos": True, "stream": True, "max_tokens": max_tokens}
        self._body = json.dumps({"model": "smollm2", "prompt": prompt, **fields})
        self._is_closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self._connection.request("POST", "/v1/completions", self._body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            while line := response.readline():
                if line.startswith(b"data: {"):
                    self._take(json.loads(line[6:]))
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # Closing the connection ends the read in one of these ways.
            if not self._is_closed:
                self.failure = f"{type(error).__name__}: {error}"

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.failure = str(event["error"])
        else:
            self.times_s.append(time.monotonic())

    def pause_s(self, since_s: float) -> float:
        """Return the seconds from `since_s` to the end of the longest pause after it."""
        times = [since_s, *(at for at in list(self.times_s) if at > since_s)]
        return max(pairwise(times), key=lambda pair: pair[1] - pair[0])[1] - since_s

    def wait(self, events: int, after_s: float = 0.0) -> None:
        """Return when that many events have come after a time; raises RuntimeError if they do not."""
        deadline_s = time.monotonic() + LIMIT_S
        while sum(at > after_s for at in list(self.times_s)) < events:
            if self.failure or time.monotonic() > deadline_s:
                raise RuntimeError(self.failure or f"no {events} events within {LIMIT_S:g} s")
            time.sleep(0.005)

    def close(self) -> None:
        """Leave."""
        self._is_closed = True
        if self._connection.sock is not None:
            self._connection.sock.close()
        self._connection.close()
