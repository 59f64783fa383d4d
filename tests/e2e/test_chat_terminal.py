"""`quartet chat` as a program: on a pseudo terminal with typed keys, and in pipes, against a server with a script."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quartet.cli.main import main
from tests.support.server import Server

pytestmark = pytest.mark.e2e
PROMPT = "\x1b[0;1m>"
COMMAND = [sys.executable, "-m", "quartet", "chat"]
LONG = " ".join(f"word{number}" for number in range(3000))
SCRIPT = [
    {"contains": "greet", "reply": "Good **morning**.\n\n- first\n- second"},
    {"contains": "two\nlines", "reply": "Both lines."},
    {"contains": "a file\n\nsummarise", "reply": "A file."},
    {"contains": "long", "reply": LONG},
    {"contains": "", "reply": "Something else."},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("chat") / "script.json"
    path.write_text(json.dumps(SCRIPT))
    with Server("--simulated-worker", "--simulated-script", str(path), "--simulated-step-ms", "5") as running:
        yield running


class Keyboard:
    """A program on a pseudo terminal of its own."""

    def __init__(self, *command: str, state: Path) -> None:
        self.shown = self._unread = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            environment = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(state)}
            os.execve(command[0], command, environment)

    def type(self, keys: str, expected: str, limit_s: float = 30.0) -> str:
        """Press keys, and return what is shown up to `expected`, from the end of the last call on."""
        os.write(self._terminal, keys.encode())
        found, deadline_s = self._unread, time.monotonic() + limit_s
        while expected not in found:
            assert time.monotonic() < deadline_s, f"{expected!r} is not in {found!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    piece = os.read(self._terminal, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the program has ended after {found!r}") from None
                found += piece
                # prompt_toolkit asks where the cursor is.
                if "\x1b[6n" in piece:
                    os.write(self._terminal, b"\x1b[1;1R")
        found, expected, self._unread = found.partition(expected)
        return found + expected

    def exit_code(self, keys: str) -> int:
        """Press keys that end the program, and return its exit code."""
        os.write(self._terminal, keys.encode())
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            # Output that is not read would keep the program.
            if select.select([self._terminal], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._terminal, 65536).decode(errors="replace")
                except OSError:
                    break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Close the terminal, which ends what still runs on it."""
        os.close(self._terminal)


@pytest.fixture
def keyboard(server: Server, tmp_path: Path) -> Iterator[Keyboard]:
    made = Keyboard(*COMMAND, "--url", f"{server.url}/v1", state=tmp_path)
    try:
        made.type("", "/help lists the commands")
        made.type("", PROMPT)
        yield made
    finally:
        made.close()


def test_a_conversation_on_a_terminal(server: Server, keyboard: Keyboard, tmp_path: Path) -> None:
    answer = keyboard.type("greet\r", "tokens/s")
    assert "\x1b[1mmorning\x1b[0m" in answer and "•" in answer and "**" not in answer
    keyboard.type("two\\\rlines\r", "Both lines.")
    keyboard.type("", PROMPT)
    keyboard.type("two\x1b\rlines\r", "Both lines.")
    keyboard.type("", PROMPT)
    keyboard.type("long\r", "word20")
    keyboard.type("\x03", "stopped")
    server.wait_until(lambda: server.get("/v1/loads")[1]["loads"][0]["num_running_reqs"] == 0)
    keyboard.type("", PROMPT)
    # The second Ctrl-C leaves.
    assert keyboard.exit_code("\x03") == 0
    assert "two" in (tmp_path / "quartet" / "chat_history").read_text()


def test_a_question_on_a_terminal(server: Server, tmp_path: Path) -> None:
    one = Keyboard(*COMMAND, "--url", server.url, "greet", "me", state=tmp_path)
    try:
        assert one.exit_code("") == 0
    finally:
        one.close()
    assert "morning" in one.shown and "tokens/s" in one.shown


Piped = Callable[..., tuple[int, str, str]]


@pytest.fixture
def piped(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piped:
    """Runs the command with standard input from a pipe; returns its code, output and errors."""

    def run(text: str, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = main(["chat", "--url", server.url, *flags])
        return code, *capsys.readouterr()

    return run


def test_pipes(piped: Piped) -> None:
    assert piped("greet\n") == (0, "Good **morning**.\n\n- first\n- second\n", "")
    assert piped("a file\n", "summarise")[1] == "A file.\n"
    assert json.loads(piped("greet", "--json")[1])["finish_reason"] == "stop"


def test_failures_have_the_exit_codes_of_the_other_commands(piped: Piped) -> None:
    for flags, expected, line in (
        (("--url", "http://127.0.0.1:1", "hi"), 1, "quartet: no engine answers at http://127.0.0.1:1"),
        (("--model", "other", "hi"), 1, "quartet: "),
        (("--temperature", "-1", "hi"), 1, "temperature"),
        ((), 2, "there is no question"),
    ):
        code, out, errors = piped("", *flags)
        assert code == expected and line in errors and out == ""


def test_ctrl_c_ends_one_answer_with_130(server: Server) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--url", server.url, "long"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(20) == 130
