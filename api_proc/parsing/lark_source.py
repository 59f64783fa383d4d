"""Collects the rules of a grammar in llguidance's Lark."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

TEXT = "/(?s:.*)/"
WHITESPACE = r"\n {0,20}| {1,2}"
"""Where JSON may have some; bounded, so that a model cannot go on with it for ever."""
_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
"""Formats of strings that llguidance enforces; by the standard others are remarks."""
_VALUES = frozenset(["const", "enum", "default", "examples", "example"])
"""Members whose value is data, not a schema."""


def literal(text: str) -> str:
    """Return `text` as a literal."""
    return json.dumps(text, ensure_ascii=False)


class LarkSource:
    """The rules of one grammar.

    Args:
        markers: texts that may be special tokens; in the source the rule `marker_N` stands for one.
    """

    def __init__(self, markers: Sequence[str] = ()) -> None:
        self.markers = tuple(markers)
        self._rules: dict[str, str] = {"TEXT": f": {TEXT}"}

    def rule(self, name: str, body: str, attributes: str = "") -> str:
        """Add a rule, unless there is one of that name; return the name."""
        self._rules.setdefault(name, f"{attributes}: {body}")
        return name

    def text(self, text: str) -> str:
        """Return an expression for `text`, in which markers may stand."""
        if not text:
            return ""
        pattern = "|".join(sorted(map(re.escape, self.markers), key=len, reverse=True))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return " ".join(self._part(part) for part in parts if part)

    def marker(self, text: str) -> str:
        """Return the rule of a marker."""
        return f"marker_{self.markers.index(text)}"

    def text_to(self, text: str) -> str:
        """Return the rule for any text up to a marker and the marker."""
        return f"text_to_{self.marker(text)}"

    def json(self, name: str, schema: Mapping[str, Any], is_strict: bool) -> str:
        """Add a rule for JSON of `schema` and return its name; without `is_strict` what cannot be enforced is not."""
        options = (
            {"whitespace_pattern": WHITESPACE} if is_strict else {"whitespace_pattern": WHITESPACE, "lenient": True}
        )
        return self.rule(name, f"%json {json.dumps({**_without_remarks(schema), 'x-guidance': options})}")

    def source(self) -> str:
        """Return the grammar."""
        return "".join(f"{name}{body}\n" for name, body in self._rules.items())

    def _part(self, part: str) -> str:
        return self.marker(part) if part in self.markers else literal(part)


def either(expressions: Sequence[str]) -> str:
    """Return an expression for one of several."""
    return expressions[0] if len(expressions) == 1 else f"({' | '.join(expressions)})"


def _without_remarks(schema: Any) -> Any:
    """Return a schema without formats that are not known."""
    if isinstance(schema, list):
        return [_without_remarks(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value if name in _VALUES else _without_remarks(value)
        for name, value in schema.items()
        if name != "format" or not isinstance(value, str) or value in _FORMATS
    }
