"""A cheap client for streams: opens many at once over raw sockets and counts events, so that it measures the server.

    python -m benchmarks.serving.sse_client --port 30000 --streams 256 --max-tokens 200
    python -m benchmarks.serving.sse_client --port 30000 --streams 256 --pid $(pgrep -f api_proc)

Prints one JSON object: events, events per second (from the first byte received to the last), and, with --pid (Linux),
the CPU time per event of that process.
"""

import argparse
import json
import selectors
import socket
import sys
import time

from benchmarks.serving.cpu_time import cpu_seconds

EVENT = b"data: "
END = b"data: [DONE]"
TAIL_BYTES = len(END) - 1
ENDING_BYTES = 1024


class Stream:
    """One connection: sends one request and counts the events of the response.

    `first_s` is the monotonic time of the first event, `pause_s` the longest time between two reads after it. `ending`
    holds the last ENDING_BYTES received: the usage, where the request asks for it.
    """

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.socket = socket.create_connection(address)
        self.first_s = self.pause_s = self._last_s = 0.0
        self.ending = b""
        self._request = request
        self._tail = b""
        self.events = 0
        self.is_done = False
        self.status = b""

    def start(self) -> None:
        """Send the request."""
        self.socket.sendall(self._request)
        self.socket.setblocking(False)

    def read(self) -> None:
        """Read what has arrived; sets `is_done` at the last event, at an error status or when the server closes."""
        data = self.socket.recv(1 << 16)
        if not self.status:
            self.status = data[9:12]
        # The tail is shorter than END but may hold a whole EVENT, which is counted already.
        joined = self._tail + data
        self.events += joined.count(EVENT) - self._tail.count(EVENT)
        self._tail = joined[-TAIL_BYTES:]
        self.ending = (self.ending + data)[-ENDING_BYTES:]
        now = time.monotonic()
        if self.events and not self.first_s:
            self.first_s = self._last_s = now
        self.pause_s, self._last_s = max(self.pause_s, now - self._last_s if self.first_s else 0.0), now
        self.is_done = not data or END in joined or self.status != b"200"


def request_bytes(host: str, path: str, body: dict[str, object], key: str, resume_s: float = 0.0) -> bytes:
    """Return one HTTP/1.1 POST."""
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    if resume_s:
        head += f"X-Quartet-Resume: {resume_s:g}\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


def run(streams: list[Stream], limit_s: float) -> tuple[float, float]:
    """Read all streams to their ends; return the times of the first and the last byte."""
    selector = selectors.DefaultSelector()
    for stream in streams:
        stream.start()
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    open_count, first_s, now = len(streams), 0.0, time.monotonic()
    deadline_s = now + limit_s
    while open_count and now < deadline_s:
        for key, _ in selector.select(1.0):
            stream = key.data
            stream.read()
            if stream.is_done:
                selector.unregister(stream.socket)
                stream.socket.close()
                open_count -= 1
        now = time.monotonic()
        first_s = first_s or now
    return first_s, now


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="count server-sent events over many streams")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--model", default="", help="default: the model of the server")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--prompt", default="Count from one to a thousand.")
    parser.add_argument("--resume", type=float, default=0.0, help="seconds for X-Quartet-Resume; 0: no such header")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds before giving up")
    parser.add_argument("--pid", type=int, default=0, help="process whose CPU time is divided by the events")
    return parser.parse_args()


def main() -> int:
    """Run once and print the result; 1 if a stream did not end well."""
    args = arguments()
    body: dict[str, object] = {"stream": True, "max_tokens": args.max_tokens, "ignore_eos": True}
    body |= {"model": args.model} if args.model else {}
    if args.path.endswith("chat/completions"):
        body["messages"] = [{"role": "user", "content": args.prompt}]
    else:
        body["prompt"] = args.prompt
    request = request_bytes(args.host, args.path, body, args.api_key, args.resume)
    streams = [Stream((args.host, args.port), request) for _ in range(args.streams)]
    before_s = cpu_seconds(args.pid) if args.pid else 0.0
    own_s = time.process_time()
    first_s, last_s = run(streams, args.limit)
    events = sum(stream.events for stream in streams)
    result: dict[str, object] = {
        "streams": len(streams),
        "ended": sum(stream.is_done and stream.status == b"200" for stream in streams),
        "events": events,
        "seconds": round(last_s - first_s, 3),
        "events_per_s": round(events / max(last_s - first_s, 1e-9)),
        "client_cpu_us_per_event": round(1e6 * (time.process_time() - own_s) / max(events, 1), 2),
    }
    if args.pid:
        result["server_cpu_us_per_event"] = round(1e6 * (cpu_seconds(args.pid) - before_s) / max(events, 1), 2)
    print(json.dumps(result))
    return 0 if result["ended"] == len(streams) else 1


if __name__ == "__main__":
    sys.exit(main())
