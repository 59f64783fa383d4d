"""quartet top against a server of fixed replies, and the completion scripts."""

import argparse
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quartet.cli import bench_serve, completion
from quartet.cli.engine_client import add_engine_arguments
from quartet.cli.main import COMMANDS, main
from quartet.settings import RARE, SETTINGS, flag_of

LOAD = {
    "num_running_reqs": 3,
    "num_waiting_reqs": 4321,
    "num_used_tokens": 1600,
    "max_total_num_tokens": 3200,
    "max_running_requests": 64,
    "token_usage": 0.5,
    "gen_throughput": 1234.5,
    "cache_hit_rate": 0.25,
}
ROW = {"role": "worker", "rank": 0, "pid": 77, "epoch": 1, "state": "down", "phase": "step", "restarts": 2}
REPLIES: dict[str, Any] = {"/v1/loads": {"loads": [LOAD]}, "/topology": {"processes": [{**ROW, "last_cause": "[x]"}]}}


@pytest.fixture
def url() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(REPLIES[self.path]).encode())

        def log_message(self, *_: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_top_draws_once_where_there_is_no_terminal(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", url + "/v1"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for expected in ("running 3 of 64", "waiting 4321", "1,600 of 3,200 tokens", "hits 25%", "1,234 tokens/s"):
        assert expected in words
    assert "worker 77 down step 2 [x]" in words, "a cause is text, not markup"


def test_top_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", url, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["loads"] == [LOAD] and shown["processes"][0]["pid"] == 77 and shown["url"] == url


def test_top_before_the_scheduler_has_reported(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(REPLIES, "/v1/loads", {"loads": []})
    assert main(["top", "--url", url, "--once"]) == 0
    assert "has not reported yet" in capsys.readouterr().out


@pytest.mark.parametrize("add_arguments", [add_engine_arguments, bench_serve.add_arguments])
def test_of_several_keys_of_a_server_one_is_sent(
    add_arguments: Callable[[argparse.ArgumentParser], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    monkeypatch.setenv("QUARTET_API_KEY", ",first,second")
    add_arguments(parser)
    assert parser.parse_args([]).api_key == "first"


@pytest.mark.parametrize("text", ["0", "-1", "nan"])
def test_top_draws_at_most_ten_times_a_second(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", text]) == 2
    assert capsys.readouterr().err.startswith("quartet: --interval: ")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_has_every_command_flag_and_choice(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command.name in script for command in COMMANDS)
    assert all(flag_of(name).lstrip("-") in script for name in set(SETTINGS) - RARE)
    assert "bfloat16" in script and "--priority-sign" not in script, "what help does not show is not completed"


def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("bash"))
    program = f"""source {tmp_path}/script
        words() {{
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _shtab_quartet
            echo "${{COMPREPLY[*]}}"
        }}
        words quartet serve --schedule-p
        words quartet serve --dtype b"""
    bash = shutil.which("bash")
    assert bash is not None
    shown = subprocess.run([bash, "-c", program], capture_output=True, text=True, timeout=30, check=True).stdout
    assert shown.split() == ["--schedule-policy", "bfloat16"]


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "is_installed", lambda _: False)
    assert main(["completion", "bash"]) == 2
    assert "install shtab" in capsys.readouterr().err
