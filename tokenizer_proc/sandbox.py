"""The jinja2 environment in which a model's chat template runs, and what it may not do.

A template comes with the model and is not trusted; the conversation is data and never becomes template code. The
immutable sandbox keeps templates from Python's internals. On top of it: a deadline that also ends loops without output,
and bounds on every operation whose result can be much longer than its operands. Any other use of memory is bounded by
the address space limit of the process (tokenizer_proc.process).
"""

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2.sandbox
from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_LENGTH = 1 << 24
MAX_RANGE = 100_000
MAX_WIDTH = 1 << 16
MAX_INTEGER_BITS = 4096
DEADLINE_S = 1.0
_UNTRACED_FILES = frozenset([__file__, jinja2.sandbox.__file__])
# A width that is too large, or that an argument gives.
_WIDE_PERCENT = re.compile(r"%(?:\(.*\))?[-#0 +.\d]*?(?:\d{6}|\*)", re.DOTALL)
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*?(?:\d{6}|\{)")
_WIDTH_METHODS = frozenset(["center", "ljust", "rjust", "zfill", "expandtabs"])
_VALUE_FILTERS = frozenset(
    ("default", "d", "int", "float", "sum", "min", "max", "replace", "truncate", "format", "join", "map")
) | {"select", "reject", "selectattr", "rejectattr"}
"""Filters whose numbers are values; those of others may be widths or counts."""


class Refused(TemplateError):
    """The template has refused the conversation by raise_exception; the message is the template's."""


class TooMuch(TemplateError):
    """The template has exceeded a bound."""


class _BoundedCode(CodeGenerator):
    """Checks `a ~ b` too, the one operator that the sandbox does not intercept, and computes nothing itself."""

    def _output_child_to_const(self, node: Any, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.Const | nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: marks assistant text for training; without effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block is a scope: what is set inside stays inside, as in transformers.
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment, with the names that Hugging Face's chat templates expect.

    Args:
        now: the local time for strftime_now.
    """

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        filters = {**self.filters, "tojson": _to_json}
        self.filters = {name: _bounded_filter(name, each) for name, each in filters.items()}
        del self.globals["lipsum"]
        self.globals["range"] = _bounded_range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda pattern: now().strftime(pattern)

    def compile_template(self, source: str) -> Template:
        """Return the compiled template; raises TemplateError also for one that needs further files, or long."""
        foreign = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        with _deadline(DEADLINE_S):
            found = next(self.parse(source).find_all(foreign), None)
            if found is not None:
                raise TemplateError(f"{type(found).__name__.lower()} in line {found.lineno} needs another file")
            return self.from_string(source)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an intercepted operator unless its result would be out of bounds."""
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_length(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if right > 0 and left.bit_length() * right > MAX_INTEGER_BITS:
                raise TooMuch("a power in the chat template is too large")
        elif operator == "%" and isinstance(left, str | bytes):
            _check_percent(left)
        return super().call_binop(context, operator, left, right)

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        """Join parts as `~` does."""
        texts = [str(part) for part in parts]
        _check_length(sum(len(text) for text in texts))
        return "".join(texts)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function; a method of a string (`center`, `format`) only with sensible widths."""
        method = getattr(function, "__wrapped__", function)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes) and name in _WIDTH_METHODS:
            _check_numbers((*args, *kwargs.values()))
        elif isinstance(owner, str) and name in ("format", "format_map"):
            _check_braces(owner)
        return super().call(context, function, *args, **kwargs)


def render(sandbox: Sandbox, template: Template, variables: dict[str, Any], deadline_s: float = DEADLINE_S) -> str:
    """Return the rendered text; raises jinja2's errors and any exception of the template's code.

    `deadline_s` is in seconds of processor time, so that a busy machine makes no template fail.
    """
    parts: list[str] = []
    length = 0
    with _deadline(deadline_s):
        for part in template.generate(**variables):
            length += len(part)
            _check_length(length)
            parts.append(part)
    return "".join(parts)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise TooMuch from within template code that has used more than `seconds` of this thread's processor time.

    A thread cannot be killed, but it can be traced: a clock is read at every line of Python that the template
    runs, filters included. The sandbox's own checks, which never loop, are left out for speed. Reading processor time
    is a system call; the wall clock, which is cheap, says when to.
    """
    end = time.thread_time() + seconds
    next_look = time.monotonic() + seconds

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal next_look
        if time.monotonic() > next_look:
            left = end - time.thread_time()
            if left <= 0:
                raise TooMuch(f"the chat template used more than {seconds:g} s of processor time")
            # Processor time never runs faster than the wall clock.
            next_look = time.monotonic() + left
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return None if frame.f_code.co_filename in _UNTRACED_FILES else on_line

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise TooMuch("the chat template makes something too long")


def _check_numbers(arguments: Iterable[Any]) -> None:
    """Refuse an absurd width or count: `center(10**10)`."""
    if any(isinstance(argument, int) and abs(argument) > MAX_WIDTH for argument in arguments):
        raise TooMuch(f"a number above {MAX_WIDTH} in the chat template is too large")


def _check_percent(pattern: str | bytes) -> None:
    """Refuse a wide or variable width: `'%1000000000d'`, `'%*d'`."""
    if _WIDE_PERCENT.search(pattern if isinstance(pattern, str) else pattern.decode("latin-1")):
        raise TooMuch("a format in the chat template is too wide")


def _check_braces(pattern: str) -> None:
    """Refuse a wide or variable width: `'{:>1000000000}'`, `'{:>{}}'`."""
    if _WIDE_BRACES.search(pattern.replace("{{", "").replace("}}", "")):
        raise TooMuch("a format in the chat template is too wide")


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if name not in _VALUE_FILTERS:
            _check_numbers((*args[1:], *kwargs.values()))
        elif name == "format":
            _check_percent(str(args[0]))
        return function(*args, **kwargs)

    return bounded


def _check_product(left: Any, right: Any) -> None:
    for sequence, times in ((left, right), (right, left)):
        if hasattr(sequence, "__len__") and isinstance(times, int):
            _check_length(len(sequence) * max(0, times))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_INTEGER_BITS:
        raise TooMuch("a product in the chat template is too large")


def _bounded_range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise TooMuch(f"range() in the chat template is longer than {MAX_RANGE}")
    return numbers


def _raise_exception(message: str) -> None:
    raise Refused(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does: no HTML escapes, which jinja2's own filter would add."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
