"""Settings: flags, environment variables and messages, derived from the fields of quartet.wire.config.

fields    the table of settings, and which have no flag of their own
values    text of a value to the value
checks    what does not go together
sources   where values come from, and the configuration that they make
"""

from quartet.settings.fields import (
    FD_NAMES,
    RARE,
    SECTIONS,
    SETTINGS,
    SHORT_HELP,
    Setting,
    bare_type,
    fields_of,
    flag_of,
    variables_of,
)
from quartet.settings.sources import Configuration, build_config, configure, did_you_mean, keyword_config
from quartet.settings.values import parse_value

__all__ = [
    "FD_NAMES",
    "RARE",
    "SECTIONS",
    "SETTINGS",
    "SHORT_HELP",
    "Configuration",
    "Setting",
    "bare_type",
    "build_config",
    "configure",
    "did_you_mean",
    "fields_of",
    "flag_of",
    "keyword_config",
    "parse_value",
    "variables_of",
]
