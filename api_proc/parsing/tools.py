"""The tools that a request offers, as far as their calls are read and written."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Tool(NamedTuple):
    """One function.

    Fields:
        parameters: the JSON schema of its arguments; empty if it takes any.
        is_strict: whether every call has to match the schema, so that a grammar enforces it.
    """

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False


def names_of(tools: Sequence[Tool]) -> frozenset[str]:
    """Return the names that may be called."""
    return frozenset(tool.name for tool in tools)
