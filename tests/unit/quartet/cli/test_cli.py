"""The command line: exit codes, one line for every error, and the table of `quartet ps`."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quartet import __version__
from quartet.cli.main import main
from quartet.wire.config import Config, ResolvedModel
from quartet.wire.errors import ConfigError, ModelError

MODEL = ResolvedModel("/m", "m", "Qwen3ForCausalLM", 512, 1024, (2,))
ROW = {"role": "worker", "rank": 0, "pid": 4321, "epoch": 3, "restarts": 2, "state": "ready", "phase": "idle"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("QUARTET_", "SGLANG_", "FD_")):
            monkeypatch.delenv(name)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was written: exactly one line, on standard error."""
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1, shown
    return shown.err.rstrip("\n")


class Launches:
    """A supervisor that records the launch instead of starting it."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.outcome: Callable[[], int] = lambda: 0

    def __call__(self, config: Config, opening: object = ()) -> "Launches":
        self.configs.append(config)
        return self

    def run(self) -> int:
        return self.outcome()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    launches = Launches()
    monkeypatch.setattr("quartet.supervisor.supervisor.Supervisor", launches)
    monkeypatch.setattr("quartet.checkpoint.resolve.resolve_model", lambda config: MODEL)
    monkeypatch.setattr("quartet.sizing.device.find_device", lambda config: None)
    monkeypatch.setattr("quartet.sizing.plan.plan_lines", lambda config, device: [])
    return launches


# serve


def test_serve_launches_by_flags_and_environment(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTET_PAGE_SIZE", "32")
    launches.outcome = lambda: 70
    argv = ["serve", "some/model", "--port", "0", "--scheduler-set", "retract_decode_steps=3"]
    assert main(argv) == 70, "the launch's exit code is ours"
    (config,) = launches.configs
    assert config.model.model_path == "some/model" and config.resolved == MODEL
    assert (config.server.port, config.worker.page_size, config.scheduler.retract_decode_steps) == (0, 32, 3)


def test_serve_takes_the_model_by_flag_and_has_a_default(launches: Launches) -> None:
    assert main(["serve", "--model", "a"]) == main(["serve", "--model-path", "a"]) == main(["serve"]) == 0
    assert [config.model.model_path for config in launches.configs] == ["a", "a", "smollm2"]


def test_serve_refuses_two_models(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "a", "--model", "b"]) == 2
    assert error_line(capsys) == "quartet: the model is given twice: a and b"
    assert not launches.configs


def test_a_wrong_setting_is_one_line_and_exit_code_2(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "65536"]) == 2
    assert error_line(capsys) == "quartet: --port: 65536 is not allowed, it must be at most 65535"


@pytest.mark.parametrize("flag", ["--tool-call-parser", "--reasoning-parser"])
def test_a_parser_that_is_not_known(flag: str, launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", flag, "gpt-9"]) == 2
    assert error_line(capsys).startswith(f"quartet: {flag}: 'gpt-9' is not one of auto, none, ")
    assert main(["serve", flag, "none"]) == 0


def test_a_port_that_cannot_be_had_is_exit_code_2(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise ConfigError("cannot listen on 127.0.0.1:80")

    launches.outcome = refuse
    assert main(["serve"]) == 2
    assert error_line(capsys) == "quartet: cannot listen on 127.0.0.1:80"


def test_a_missing_model_is_one_line_and_exit_code_3(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(config: Any) -> ResolvedModel:
        raise ModelError(f"{config.model_path}: no such folder")

    monkeypatch.setattr("quartet.checkpoint.resolve.resolve_model", missing)
    assert main(["serve", "nowhere"]) == 3
    assert error_line(capsys) == "quartet: nowhere: no such folder"
    assert not launches.configs


def test_an_interrupt_before_the_launch_is_quiet(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    launches.outcome = interrupt
    assert main(["serve"]) == 130
    assert capsys.readouterr().err == ""


# Usage


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "quartet: the following arguments are required: COMMAND"),
        (["fly"], "'fly'"),
        (["serve", "--prot", "1"], "quartet serve: unknown argument --prot; did you mean --port"),
        (["serve", "a", "b"], "quartet serve: unknown argument b"),
        (["ps", "--ulr", "x"], "quartet ps: unknown argument --ulr; did you mean --url"),
        (["chat", "--port", "1"], "quartet chat: unknown argument --port"),
        (["serve", "--port"], "quartet serve: argument --port: expected one argument"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert words in error_line(capsys)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"quartet {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "chat", "ps"])
def test_help_can_be_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0 and "usage: quartet" in capsys.readouterr().out


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("torch", "zmq", "aiohttp", "tokenizers", "uvloop", "numpy", "asyncio")
    script = f"import sys, quartet.cli.main; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert shown.stdout == "[]\n"


# ps


@pytest.fixture
def nothing_listens() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


class Service:
    """An HTTP server that gives every request the same reply and records it."""

    def __init__(self) -> None:
        self.status, self.body = 200, json.dumps({"processes": [ROW]})
        self.asked: list[tuple[str, str | None]] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append((self.path, self.headers["authorization"]))
                self.send_response(service.status)
                self.end_headers()
                self.wfile.write(service.body.encode())

            def log_message(self, *arguments: Any) -> None: ...

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def test_ps_against_nothing_is_one_line_and_exit_code_1(
    nothing_listens: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ps", "--url", nothing_listens]) == 1
    assert error_line(capsys).startswith(f"quartet: no engine answers at {nothing_listens}: ")


def test_ps_shows_a_table(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--url", service.url]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["ROLE", "RANK", "PID", "EPOCH", "RESTARTS", "STATE", "PHASE"]
    assert row.split() == ["worker", "0", "4321", "3", "2", "ready", "idle"]
    assert row.index("ready") == header.index("STATE")
    assert service.asked == [("/topology", None)]


def test_ps_sends_the_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["ps", "--url", service.url, "--api-key", "secret"])
    monkeypatch.setenv("QUARTET_API_KEY", "from-env")
    monkeypatch.setenv("QUARTET_URL", service.url)
    main(["ps"])
    assert [key for _, key in service.asked] == ["Bearer secret", "Bearer from-env"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "{}", "the engine at {url} refuses the key: give the right one by --api-key or QUARTET_API_KEY"),
        (500, "", "HTTP 500 "),
        (503, '{"error": {"message": "draining"}}', "draining"),
        (200, "not json", "what answers at {url} is no engine: /topology gives "),
        (200, '{"other": 1}', "what answers at {url} is no engine: /topology gives "),
    ],
)
def test_ps_against_something_else(
    service: Service, status: int, body: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.status, service.body = status, body
    assert main(["ps", "--url", service.url]) == 1
    assert error_line(capsys).startswith(f"quartet: {words.format(url=service.url)}")


@pytest.mark.parametrize("body", ["[]", '{"processes": [{}]}', '{"processes": 3}'])
def test_ps_against_other_json(service: Service, body: str, capsys: pytest.CaptureFixture[str]) -> None:
    service.body = body
    assert main(["ps", "--url", service.url]) == 1


def test_ps_against_a_port_that_speaks_no_http(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            assert main(["ps", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}"]) == 1
        finally:
            thread.join()


def test_ps_with_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--url", "ftp://localhost"]) == 1
    assert error_line(capsys).startswith("quartet: 'ftp://localhost' is no address of a server, such as http://")


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_url_may_have_v1_and_no_scheme(service: Service, suffix: str) -> None:
    assert main(["ps", "--url", service.url.removeprefix("http://") + suffix]) == 0
    assert [path for path, _ in service.asked] == ["/topology"]


def test_ps_shows_the_settings_in_force(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.body = json.dumps({"schedule_policy": "lpm", "stream_interval": 2})
    assert main(["ps", "--config", "--url", service.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["schedule_policy", "lpm"], ["stream_interval", "2"]]
    assert service.asked == [("/config", None)]
