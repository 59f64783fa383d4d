"""What systemd is told, and when."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quartet.supervisor.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket, which the environment names."""
    name = f"{tmp_path}/notify" if request.param == "path" else f"@quartet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(0.1)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_fields_are_lines(manager: socket.socket) -> None:
    with closing(Notifier()) as notifier:
        notifier.send(READY=1, STATUS="ready at http://x/v1")
    assert manager.recv(200) == b"READY=1\nSTATUS=ready at http://x/v1"


def test_the_watchdog_is_told_twice_a_period(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with closing(Notifier()) as notifier:
        for tenth in range(200):
            notifier.keep_alive(1000.0 + tenth / 10)
    messages = [manager.recv(200) for _ in range(4)]
    assert messages == [b"WATCHDOG=1"] * 4
    with pytest.raises(TimeoutError):
        manager.recv(200)


@pytest.mark.parametrize(("name", "value"), [("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", "soon")])
def test_a_watchdog_of_another_process_is_not_fed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv(name, value)
    with closing(Notifier()) as notifier:
        notifier.keep_alive(1000.0)
    with pytest.raises(TimeoutError):
        manager.recv(200)


def test_children_do_not_inherit_it(manager: socket.socket) -> None:
    Notifier().close()
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@" * 300])
def test_no_manager_is_told_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with closing(Notifier()) as notifier:
        notifier.send(READY=1)
        notifier.keep_alive(1000.0)
