"""Says what is wrong with an output that has to follow a schema."""

import json
from typing import Any

import jsonschema


def problem(text: str, schema: dict[str, Any]) -> str | None:
    """Return why `text` is no JSON of `schema`, or None if it is; formats count."""
    try:
        value = json.loads(text)
    except ValueError as wrong:
        return f"no JSON: {wrong}"
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    error = next(jsonschema.Draft202012Validator(schema, format_checker=checker).iter_errors(value), None)
    return None if error is None else error.message
