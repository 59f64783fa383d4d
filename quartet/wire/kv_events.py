"""The value of --kv-events-config: where KV-cache events are published, and in which form. Key names are vLLM's."""

import ipaddress
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from quartet.wire.errors import ConfigError

_TCP = re.compile(r"tcp://(\*|\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_BOUND_HOSTS = ("*", "0.0.0.0", "[::]", "localhost")


class KvEventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Endpoints are `tcp://HOST:PORT` or `ipc://PATH`; the other fields bound memory.

    `buffer_steps` messages are kept for replay, `hwm` messages for a slow subscriber, and `max_queue_size` changes
    between two messages. `encoding` is the form of an event: a map, or an array for consumers of vLLM's older form.
    """

    enable_kv_cache_events: bool = True
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://127.0.0.1:5557"
    replay_endpoint: str | None = None
    buffer_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    hwm: Annotated[int, Meta(ge=0, le=10_000_000)] = 100_000
    max_queue_size: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    topic: Annotated[str, Meta(max_length=512)] = ""
    encoding: Literal["map", "array"] = "map"

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Every endpoint that is given."""
        return (self.endpoint,) if self.replay_endpoint is None else (self.endpoint, self.replay_endpoint)


def parse_kv_events(text: str) -> KvEventsConfig | None:
    """Return what the flag's text asks for; None where no events are to be published.

    Raises ConfigError for what is not JSON of this shape, and for an endpoint that cannot be used.
    """
    if not text:
        return None
    try:
        config = msgspec.json.decode(text, type=KvEventsConfig)
    except msgspec.DecodeError as error:
        names = ", ".join(KvEventsConfig.__struct_fields__)
        raise ConfigError(f"--kv-events-config: {error}; it is a JSON object with some of {names}") from error
    if not config.enable_kv_cache_events or config.publisher == "null":
        return None
    for endpoint in config.endpoints:
        _check_endpoint(endpoint)
    if len(set(config.endpoints)) < len(config.endpoints):
        raise ConfigError(f"--kv-events-config: {config.endpoint} is endpoint and replay_endpoint; give two ports")
    return config


def _check_endpoint(endpoint: str) -> None:
    found = _TCP.fullmatch(endpoint)
    is_port = found is not None and 0 < int(found[2]) < 1 << 16
    is_path = endpoint.startswith("ipc:///") and "\0" not in endpoint
    if not is_port and not is_path:
        raise ConfigError(
            f"--kv-events-config: {endpoint!r} is not an endpoint, such as tcp://127.0.0.1:5557 or ipc:///run/events"
        )


def is_bound(endpoint: str) -> bool:
    """Return whether subscribers connect to the endpoint; else it is that of a subscriber, which is connected to.

    As in vLLM wildcards and files are bound; addresses of this machine's loopback are, too.
    """
    found = _TCP.fullmatch(endpoint)
    return found is None or found[1] in _BOUND_HOSTS or is_loopback(endpoint)


def is_loopback(endpoint: str) -> bool:
    """Return whether an endpoint is a file, or an address that other machines do not reach."""
    found = _TCP.fullmatch(endpoint)
    if found is None or found[1] == "localhost":
        return True
    try:
        return ipaddress.ip_address(found[1].strip("[]")).is_loopback
    except ValueError:
        return False


def host_and_port(endpoint: str) -> tuple[str, int] | None:
    """Return host and port of a TCP endpoint, None for a file."""
    found = _TCP.fullmatch(endpoint)
    return None if found is None else (found[1], int(found[2]))
