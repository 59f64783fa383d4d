"""The socket on which every api process accepts; it stays open when one of them dies."""

import socket

from quartet.wire.errors import ConfigError


def open_listener(host: str, port: int) -> socket.socket:
    """Return the listening socket. Raises ConfigError, which says what to do, for an address that cannot be had."""
    try:
        return listening_socket(host, port)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise ConfigError(
            f"cannot listen on {_netloc(host, port)}: {reason}; "
            "choose another with --host and --port (0 picks a free port)"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Return the address of the HTTP API."""
    host, port = listener.getsockname()[:2]
    return f"http://{_netloc(host, port)}"


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind and listen; the socket is inherited by every api process. Raises OSError, UnicodeError for no host name.

    Of a name with several addresses it is one of IPv4, if there is one."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock
