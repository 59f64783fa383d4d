"""One of several client processes that load the HTTP api together; gpu_http.py starts them.

Reads one line from standard input, a JSON object {"port", "path", "limit_s", "bodies"}, opens a connection for each
body and prints `connected`. Reads a second line, the monotonic time at which to send all requests, counts until the
last stream has ended or the limit is reached, and prints one JSON object. All processes of a host share the monotonic
clock.
"""

import json
import re
import sys
import time
from typing import Any

from benchmarks.serving.sse_client import Stream, request_bytes, run

HOST = "127.0.0.1"
USAGE = {name: re.compile(rb'"%b":(\d+)' % name.encode()) for name in ("completion_tokens", "cached_tokens")}


def usage(stream: Stream, name: str) -> int:
    """Return a number of the stream's last event but one, or 0 where it is missing."""
    found = USAGE[name].search(stream.ending)
    return int(found[1]) if found else 0


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Connect, wait for the common start, send and count."""
    address = (HOST, order["port"])
    streams = [Stream(address, request_bytes(HOST, order["path"], body, "")) for body in order["bodies"]]
    print("connected", flush=True)
    start_s = float(sys.stdin.readline())
    time.sleep(max(0.0, start_s - time.monotonic()))
    cpu_s = time.process_time()
    _, end_s = run(streams, order["limit_s"])
    cpu_s = time.process_time() - cpu_s
    good = [stream for stream in streams if stream.is_done and usage(stream, "completion_tokens")]
    bad = next((stream for stream in streams if stream not in good), None)
    return {
        "ended": len(good),
        "tokens": sum(usage(stream, "completion_tokens") for stream in good),
        "cached_tokens": sum(usage(stream, "cached_tokens") for stream in good),
        "events": sum(stream.events for stream in streams),
        "last_first_s": max(stream.first_s for stream in streams),
        "end_s": end_s,
        "pauses_s": [stream.pause_s for stream in streams],
        "cpu_s": cpu_s,
        "bad_ending": bad.ending.decode(errors="replace")[-300:] if bad else "",
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.stdin.readline()))), flush=True)
