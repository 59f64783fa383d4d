"""Where the launch listens, and why it cannot."""

import socket
import time

import pytest

from quartet.supervisor.listener import listening_socket


def test_the_listening_socket_listens_and_is_inherited() -> None:
    with listening_socket("127.0.0.1", 0) as listener:
        assert listener.get_inheritable()
        with socket.create_connection(listener.getsockname(), timeout=5):
            pass


def test_a_port_that_is_taken_is_an_error_and_leaks_nothing() -> None:
    with listening_socket("127.0.0.1", 0) as listener, pytest.raises(OSError, match="in use"):
        listening_socket("127.0.0.1", listener.getsockname()[1])


def test_the_port_of_a_launch_just_ended_can_be_had_at_once() -> None:
    with listening_socket("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5):
            accepted, _ = listener.accept()
            accepted.close()
            time.sleep(0.01)
    listening_socket(*address).close()


@pytest.mark.parametrize(
    ("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1"), ("", "0.0.0.0")]
)
def test_where_it_listens(host: str, bound: str) -> None:
    with listening_socket(host, 0) as listener:
        assert listener.getsockname()[0] == bound


@pytest.mark.parametrize("host", ["no-such-host.invalid", "999.0.0.1", "[::1]"])
def test_a_host_that_is_none_has_a_reason(host: str) -> None:
    with pytest.raises(OSError, match=r"\w+") as caught:
        listening_socket(host, 0)
    assert caught.value.strerror
