"""Requests that ended a process each time it worked on them: ones like them are refused for a while (faults R13). Pure.

The scheduler refuses what ended the worker, an api process what ended another process.
"""

import collections
import hashlib

import msgspec

from quartet.wire.errors import RequestError
from quartet.wire.frames import SamplingParams

REFUSED_S = 600.0
MOST_REFUSED = 1000
QUARANTINED = "request_quarantined"


class Quarantine:
    """Fingerprints of requests that are refused, the oldest first. `found_count` requests were found at fault, and
    `refused_count` refused because they were like them."""

    def __init__(self) -> None:
        self.found_count = self.refused_count = 0
        self._refused: collections.OrderedDict[bytes, tuple[float, float]] = collections.OrderedDict()
        """Fingerprint to (refused until, for how many seconds)."""

    def refuse(self, key: bytes, role: str, now: float) -> RequestError:
        """Refuse requests of that fingerprint from here on, twice as long as the last time.

        Returns the error of the request that has ended the process of `role`."""
        self.found_count += 1
        _, last_s = self._refused.pop(key, (0.0, REFUSED_S / 2))
        self._refused[key] = (now + 2 * last_s, 2 * last_s)
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)
        message = f"The {role} has ended each time it worked on this request, which is refused for {2 * last_s:.0f} s."
        return RequestError(500, QUARANTINED, message)

    def check(self, prompt: bytes, params: SamplingParams, now: float) -> None:
        """Raise RequestError for a new request like one that was found at fault."""
        if not self._refused:
            return
        until_s, _ = self._refused.get(fingerprint(prompt, params), (0.0, 0.0))
        if now < until_s:
            self.refused_count += 1
            message = f"A request like this one has ended a process; it is refused for another {until_s - now:.0f} s."
            raise RequestError(422, QUARANTINED, message)


def fingerprint(prompt: bytes, params: SamplingParams) -> bytes:
    """Return a hash of what a request makes a process compute, whatever its seed and length."""
    alike = msgspec.structs.replace(params, seed=0, max_new_tokens=None)
    return hashlib.blake2b(prompt + msgspec.msgpack.encode(alike), digest_size=16).digest()
