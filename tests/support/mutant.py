"""Switches one line of the program off in this process, to see that a test notices."""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def mutant(owner: type[Any], method: str, old: str, new: str) -> Iterator[None]:
    """Inside the block the method's source reads `new` where it read `old`, which must stand there once."""
    original = inspect.unwrap(getattr(owner, method))
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(old) == 1, f"{owner.__name__}.{method} has {source.count(old)} times {old!r}"
    module = vars(sys.modules[owner.__module__])
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<mutant of {owner.__name__}.{method}>", "exec"), module, made)
    before = owner.__dict__[method]
    setattr(owner, method, made[method])
    try:
        yield
    finally:
        setattr(owner, method, before)
