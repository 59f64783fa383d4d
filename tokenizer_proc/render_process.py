"""The tokenizer process's side of its render child: starts it, asks it, and replaces it when a template ends it."""

import signal
from typing import Any

import msgspec

from tokenizer_proc.child import Child
from tokenizer_proc.child_frames import Load, NotRendered, Render, Rendered
from tokenizer_proc.renderer import RenderError
from tokenizer_proc.sandbox import DEADLINE_S

ATTEMPTS = 2
"""A child that has died of something other than its deadline gets the conversation once more."""
MODULE = "tokenizer_proc.render_child"

_decode = msgspec.json.Decoder(Rendered | NotRendered).decode


class RenderProcess:
    """Implements Renderer by a child process. For one thread at a time.

    The child dies with the thread that started it, and with this process.
    """

    def __init__(self) -> None:
        self._source: str | None = None
        self._child = Child(MODULE)

    def load(self, source: str) -> None:
        """Have the template compiled; raises RenderError."""
        self._source = source
        self._ask(Load(source))

    def render(self, variables: dict[str, Any], deadline_s: float = DEADLINE_S) -> str:
        """Return the rendered text; raises RenderError."""
        try:
            return self._ask(Render(variables, deadline_s))
        except RecursionError as error:
            raise RenderError("failed", type(error).__name__) from None

    def close(self) -> None:
        """End the child, whatever it does."""
        self._child.close()

    def _ask(self, request: Load | Render) -> str:
        for _ in range(ATTEMPTS):
            answer = self._child.ask(request)
            if answer is not None:
                return _text(_decode(answer))
            code = self._child.reap()
            self._child = Child(MODULE)
            if self._source is not None and isinstance(request, Render):
                self._child.ask(Load(self._source))
            if code == -signal.SIGPROF:
                raise RenderError("too_much", "the chat template used too much processor time in one operation")
        raise RenderError("too_much", "the chat template ended the process that renders it")


def _text(answer: Rendered | NotRendered) -> str:
    if isinstance(answer, NotRendered):
        raise RenderError(answer.kind, answer.reason)
    return answer.text
