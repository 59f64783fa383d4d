"""Settings: flags, environment variables and messages, derived from the fields of quartet.wire.config.

- fields: the table of settings, and which have no flag of their own
- variables: names in the environment, and those that look like one
- file: settings of a YAML or TOML file
- other_engines: flags of vLLM and SGLang in terms of ours
- values: text of a value to the value
- checks: what does not go together
- sources: what each source gives, and the configuration that they make"""

from quartet.settings.fields import (
    FD_NAMES,
    RARE,
    SECRETS,
    SECTIONS,
    SETTINGS,
    SHORT_HELP,
    Setting,
    bare_type,
    fields_of,
    flag_of,
)
from quartet.settings.other_engines import meaning_of
from quartet.settings.sources import OFFLINE, Configuration, build_config, configure, did_you_mean, keyword_config
from quartet.settings.values import parse_value
from quartet.settings.variables import unknown_variables, variables_of

__all__ = [
    "FD_NAMES",
    "OFFLINE",
    "RARE",
    "SECRETS",
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
    "meaning_of",
    "parse_value",
    "unknown_variables",
    "variables_of",
]
