"""The interpreter's integer overflow checks: off, as by default they only cost time, or raising."""

from collections.abc import Iterator
from contextlib import contextmanager

from triton.runtime import interpreter


def skip_overflow_checks() -> None:
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@contextmanager
def raising_on_overflow() -> Iterator[None]:
    """Make integer overflow an error, which a compiled kernel would turn into a wild address."""
    builder = interpreter.interpreter_builder
    plain = builder.options
    builder.options = interpreter.InterpreterOptions(debug=True)
    try:
        yield
    finally:
        builder.options = plain
