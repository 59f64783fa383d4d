"""Environment variables of settings: their names, and those that look like one and are none."""

from collections.abc import Mapping
from difflib import get_close_matches

from quartet.settings.fields import FD_NAMES, SETTINGS

OTHER_VARIABLES = frozenset(
    {"QUARTET_CONFIG", "QUARTET_URL", "QUARTET_CACHE_DIR", "QUARTET_FAILPOINTS", "QUARTET_EXAMPLES"}
)
"""Variables that are no settings: of the commands, the cache of conversions, and tests."""


def variables_of(name: str) -> list[str]:
    """Return the environment variables of a setting, in order of precedence."""
    prefixes = ["QUARTET_"]
    prefixes += ["SGLANG_"] if SETTINGS[name].section == "scheduler" else []
    prefixes += ["FD_"] if name in FD_NAMES else []
    return [prefix + name.upper() for prefix in prefixes]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a line for every QUARTET_ variable that is none, and for misspelt names of other engines.

    The other engines have many variables of their own, so only what is close to one that is read is named.
    """
    known = [variable for name in SETTINGS for variable in variables_of(name)]
    lines = []
    for variable in environment:
        prefix = next((one for one in ("QUARTET_", "SGLANG_", "FD_") if variable.startswith(one)), None)
        if prefix is None or variable in known or variable in OTHER_VARIABLES:
            continue
        alike = [one.removeprefix(prefix) for one in (*known, *sorted(OTHER_VARIABLES)) if one.startswith(prefix)]
        near = get_close_matches(variable.removeprefix(prefix), alike, 1, 0.6 if prefix == "QUARTET_" else 0.9)
        if near or prefix == "QUARTET_":
            lines.append(
                f"{variable} is no variable of Quartet" + (f"; did you mean {prefix}{near[0]}?" if near else "")
            )
    return lines
