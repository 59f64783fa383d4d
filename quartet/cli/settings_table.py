"""The settings of a launch as a table: name, value and origin; values of keys are not shown."""

from typing import Any

from quartet.settings import SECRETS, SETTINGS, Configuration

DEFAULT = "default"


def setting_rows(configuration: Configuration) -> list[dict[str, Any]]:
    """Return name, section, value, default and origin of every setting, those that are changed first."""
    rows = []
    for name, setting in SETTINGS.items():
        value = getattr(getattr(configuration.config, setting.section), name)
        shown = f"({len(value)} given)" if name in SECRETS and value else value
        origin = configuration.origins.get(name, DEFAULT if value == setting.default else "this machine")
        rows.append(
            {"name": name, "section": setting.section, "value": shown, "default": setting.default, "origin": origin}
        )
    return sorted(rows, key=lambda row: row["value"] == row["default"])


def changed_lines(configuration: Configuration) -> list[str]:
    """Return a table of the settings that are given and are not their default."""
    rows = [row for row in setting_rows(configuration) if row["name"] in configuration.origins]
    return table([row for row in rows if row["value"] != row["default"]])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line of name, value and origin for each row."""
    cells = [(row["name"], _text(row["value"]), row["origin"]) for row in rows]
    widths = [max((len(cell[column]) for cell in cells), default=0) for column in (0, 1)]
    return [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in cells]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return "-" if value in ("", None) else str(value)
