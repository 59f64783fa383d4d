"""A launch sends its traces to a collector by OTLP over HTTP; without OpenTelemetry it says how to install it."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from quartet.cli.main import main
from quartet.runtime import installed
from tests.support.server import Server


class Collector(http.server.ThreadingHTTPServer):
    """Keeps the bodies that are posted to it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.bodies.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield it
        it.shutdown()


@pytest.mark.e2e
@pytest.mark.slow
def test_spans_reach_the_collector(collector: Collector) -> None:
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    with Server("--simulated-worker", "--otlp-traces-endpoint", f"http://127.0.0.1:{collector.server_port}") as server:
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})[0] == 200
        server.process.terminate()
        assert server.process.wait(20) == 0
    names = []
    for path, body in collector.bodies:
        assert path == "/v1/traces"
        request = trace_service.ExportTraceServiceRequest.FromString(body)
        names += [span.name for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v1/completions", "decode", "prefill", "queue", "tokenize"]


def test_without_the_package_the_launch_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installed, "is_installed", lambda module: not module.startswith("opentelemetry"))
    assert main(["serve", "--simulated-worker", "--otlp-traces-endpoint", "http://127.0.0.1:4318"]) == 2
    error = capsys.readouterr().err
    assert "quartet[otel]" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--otlp-traces-endpoint", "localhost:4317"], "is not a URL"),
        (["--log-requests-level", "2"], "--log-requests"),
        (["--disable-metrics", "--metrics-alias", "vllm"], "drop one"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--simulated-worker", *flags]) == 2
    assert words in capsys.readouterr().err
