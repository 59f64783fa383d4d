"""Settings of a file: YAML (JSON is a subset) or TOML, by its suffix. Keys are names of flags; sections are optional.

Every value is text, or a list of texts, so that it is read and refused as a flag's is.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

from quartet.runtime.home import expand_home
from quartet.settings.fields import SECTIONS
from quartet.wire.errors import ConfigError

MOST_BYTES = 1 << 20


class Entry(NamedTuple):
    """A key of the file, its value, and where it stands: `file:line`."""

    key: str
    value: Any
    origin: str


def read_entries(given: str) -> list[Entry]:
    """Return the entries of a file, those of sections among them, in order. Raises ConfigError."""
    path = expand_home(given)
    readers = {".yaml": _yaml, ".yml": _yaml, ".json": _yaml, ".toml": _toml}
    if path.suffix not in readers:
        raise ConfigError(f"--config: {given} does not end in .yaml, .yml, .json or .toml")
    try:
        if not path.is_file():
            raise ConfigError(f"--config: {given} is no file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"--config: cannot read {given}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config: {given} is not UTF-8") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"--config: {given} is larger than {MOST_BYTES} bytes")
    entries = list(_flat(readers[path.suffix](text, given)))
    seen: dict[str, str] = {}
    for entry in entries:
        key = entry.key.replace("_", "-")
        if key in seen:
            raise ConfigError(f"{entry.origin}: {entry.key} is given twice, first at {seen[key]}")
        seen[key] = entry.origin
    return entries


def _flat(entries: list[Entry]) -> Iterator[Entry]:
    for entry in entries:
        is_section = isinstance(entry.value, list) and any(isinstance(one, Entry) for one in entry.value)
        if is_section and entry.key in SECTIONS:
            yield from entry.value
        elif is_section:
            raise ConfigError(f"{entry.origin}: {entry.key} is no section; those are {', '.join(SECTIONS)}")
        elif entry.value is None:
            raise ConfigError(f"{entry.origin}: {entry.key} has no value")
        else:
            yield entry


def _yaml(text: str, name: str) -> list[Entry]:
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{place}: {getattr(error, 'problem', None) or 'this is no YAML'}") from None
    except RecursionError:
        raise ConfigError(f"{name}: the values are nested too deeply") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}: the file must hold settings, one `name: value` a line")
    return _yaml_entries(root, name)


def _yaml_entries(mapping: Any, name: str, is_section: bool = False) -> list[Entry]:
    entries = []
    for key, node in mapping.value:
        origin = f"{name}:{key.start_mark.line + 1}"
        if node.id == "scalar":
            value: Any = None if node.tag.endswith(":null") else node.value
        elif node.id == "sequence" and all(one.id == "scalar" for one in node.value):
            value = [one.value for one in node.value]
        elif node.id == "mapping" and not is_section:
            value = _yaml_entries(node, name, is_section=True) or None
        else:
            raise ConfigError(f"{origin}: {key.value} must be a value or a list of values")
        entries.append(Entry(str(key.value), value, origin))
    return entries


def _toml(text: str, name: str) -> list[Entry]:
    try:
        return _toml_entries(tomllib.loads(text), text, name)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: the values are nested too deeply") from None


def _toml_entries(table: dict[str, Any], text: str, name: str, is_section: bool = False) -> list[Entry]:
    entries = []
    for key, given in table.items():
        found = re.search(rf"^[ \t\[]*[\"']?{re.escape(key)}[\"']?[ \t]*[=\]]", text, re.MULTILINE)
        origin = f"{name}:{text.count(chr(10), 0, found.start()) + 1}" if found else name
        values = given if isinstance(given, list) else [given]
        if isinstance(given, dict) and not is_section:
            value: Any = _toml_entries(given, text, name, is_section=True) or None
        elif all(isinstance(one, str | bool | int | float) for one in values):
            texts = [one if isinstance(one, str) else repr(one).lower() for one in values]
            value = texts if isinstance(given, list) else texts[0]
        else:
            raise ConfigError(f"{origin}: {key} must be a value or a list of values")
        entries.append(Entry(key, value, origin))
    return entries
