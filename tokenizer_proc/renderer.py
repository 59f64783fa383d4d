"""Renders one chat template: in this process, or in a child that may die of it (tokenizer_proc.render_process)."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from jinja2 import Template
from jinja2.exceptions import SecurityError

from tokenizer_proc.sandbox import DEADLINE_S, Refused, Sandbox, TooMuch, render


class RenderError(Exception):
    """A template cannot be compiled, or has not rendered a conversation.

    `kind`: `broken` (it cannot be compiled), `refused` (it does not accept the conversation; `reason` is its own),
    `unsafe` or `too_much` (it would do so to any conversation), `failed` (`reason` is the name of the exception).
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Renderer(Protocol):
    """Holds one template."""

    def load(self, source: str) -> None:
        """Compile the template; raises RenderError."""
        ...

    def render(self, variables: dict[str, Any], deadline_s: float = DEADLINE_S) -> str:
        """Return the rendered text; raises RenderError. `deadline_s` is in seconds of processor time."""
        ...


class LocalRenderer:
    """Renders in this process, where no operation of the interpreter itself can be interrupted.

    Args:
        now: the local time.
    """

    def __init__(self, now: Callable[[], datetime] = datetime.now) -> None:
        self._sandbox = Sandbox(now)
        self._template: Template | None = None

    def load(self, source: str) -> None:
        """Compile the template."""
        try:
            self._template = self._sandbox.compile_template(source)
        except Exception as error:
            # What jinja2 and the Python compiler make of a broken template is not limited to their own errors.
            raise RenderError("broken", str(error) or type(error).__name__) from None

    def render(self, variables: dict[str, Any], deadline_s: float = DEADLINE_S) -> str:
        """Return the rendered text."""
        assert self._template is not None
        try:
            return render(self._sandbox, self._template, variables, deadline_s)
        except Refused as error:
            raise RenderError("refused", str(error)) from None
        except TooMuch as error:
            raise RenderError("too_much", str(error)) from None
        except MemoryError:
            raise RenderError("too_much", "it needs too much memory") from None
        except SecurityError as error:
            raise RenderError("unsafe", str(error)) from None
        except Exception as error:
            # Its text may quote the prompt.
            raise RenderError("failed", type(error).__name__) from None
