"""Settings under the names of other engines: refusals by the name that was given, and hints at rare settings."""

import pytest

from quartet.cli.options import OneLineParser, add_options
from quartet.settings import build_config
from quartet.wire.errors import ConfigError


@pytest.mark.parametrize("steps", ["600", "10"])
@pytest.mark.parametrize("prefix", ["FD_", "SGLANG_", "QUARTET_"])
def test_the_two_ways_are_named_as_they_were_given(prefix: str, steps: str) -> None:
    """600 is the default: it was given all the same."""
    given = {f"{prefix}NEW_TOKEN_RATIO_DECAY": "0.003", "FD_NEW_TOKEN_RATIO_DECAY_STEPS": steps}
    with pytest.raises(ConfigError) as caught:
        build_config({}, given)
    assert str(caught.value).startswith(f"{prefix}NEW_TOKEN_RATIO_DECAY and FD_NEW_TOKEN_RATIO_DECAY_STEPS exclude ")


@pytest.mark.parametrize("name", ["FD_NEW_TOKEN_RATIO_DECAY", "FD_NEW_TOKEN_RATIO_DECAY_STEPS"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_fall_of_nothing_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({}, {name: value})
    assert str(caught.value).startswith(f"{name}: {value} is not allowed, it must be ")


def test_a_flag_for_a_rare_setting_names_the_way_to_set_it(capsys: pytest.CaptureFixture[str]) -> None:
    made = OneLineParser(prog="quartet serve", allow_abbrev=False)
    add_options(made)
    with pytest.raises(SystemExit):
        made.parse_args(["--retract-decode-steps", "5"])
    message = "unknown argument --retract-decode-steps; did you mean --scheduler-set retract_decode_steps=VALUE"
    assert message in capsys.readouterr().err
