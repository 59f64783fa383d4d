"""The host, with or without brackets, and paths with a tilde: from flags and variables alike."""

import pytest

from quartet.settings import build_config
from quartet.wire.config import ServerConfig
from quartet.wire.errors import ConfigError


def server(name: str, value: str) -> ServerConfig:
    """Return the server's section for one setting, which flag and variable must set alike."""
    by_flag = build_config({f"server.{name}": value}, {}).server
    assert build_config({}, {f"QUARTET_{name.upper()}": value}).server == by_flag
    return by_flag


def refusal(name: str, value: str) -> str:
    with pytest.raises(ConfigError) as caught:
        server(name, value)
    return str(caught.value)


@pytest.mark.parametrize(("given", "host"), [("[::1]", "::1"), ("::1", "::1"), ("127.0.0.2", "127.0.0.2")])
def test_a_loopback_address_needs_no_key(given: str, host: str) -> None:
    assert server("host", given).host == host


@pytest.mark.parametrize("host", ["[::]", "::", "0.0.0.0", "", "[::1", "::1]", "example.com", "[2001:db8::1]"])
def test_any_other_host_needs_one(host: str) -> None:
    assert "--api-key" in refusal("host", host)


@pytest.mark.parametrize("name", ["run_dir", "record_trace"])
def test_a_tilde_is_the_home_directory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    wanted = {"~/x": "/home/me/x", "~": "/home/me", "a/~/x": "a/~/x", "~no-such-user/x": "~no-such-user/x"}
    assert {given: getattr(server(name, given), name) for given in wanted} == wanted


@pytest.mark.parametrize("name", ["run_dir", "record_trace"])
def test_without_a_home_directory_a_tilde_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert refusal(name, "~/x").startswith("~/x is a path in a home directory, and user ")
    assert "set HOME" in refusal(name, "~/x")
