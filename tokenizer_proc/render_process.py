"""The tokenizer process's side of its render child: starts it, asks it, and replaces it when a template ends it."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

import msgspec

from quartet.runtime.lifetime import stop_signals_blocked
from tokenizer_proc.render_frames import Load, NotRendered, Render, Rendered, read, write
from tokenizer_proc.renderer import RenderError
from tokenizer_proc.sandbox import DEADLINE_S

ATTEMPTS = 2
"""A child that has died of something other than its deadline gets the conversation once more."""

_decode = msgspec.json.Decoder(Rendered | NotRendered).decode


class RenderProcess:
    """Implements Renderer by a child process. For one thread at a time.

    The child dies with the thread that started it, and with this process.
    """

    def __init__(self) -> None:
        self._source: str | None = None
        self._child = self._start()

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
        self._child.kill()
        self._end()

    def _ask(self, request: Load | Render) -> str:
        for _ in range(ATTEMPTS):
            answer = self._answer(request)
            if answer is not None:
                break
            code = self._end()
            self._child = self._start()
            if self._source is not None and isinstance(request, Render):
                self._answer(Load(self._source))
            if code == -signal.SIGPROF:
                answer = NotRendered("too_much", "the chat template used too much processor time in one operation")
                break
        else:
            answer = NotRendered("too_much", "the chat template ended the process that renders it")
        if isinstance(answer, NotRendered):
            raise RenderError(answer.kind, answer.reason)
        return answer.text

    def _answer(self, request: Load | Render) -> Rendered | NotRendered | None:
        """Return the child's answer, or None if it has died."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            write(self._child.stdin, request)
        except OSError:
            return None
        data = read(self._child.stdout)
        return None if data is None else _decode(data)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tokenizer_proc.render_child", str(os.getpid())]
        with stop_signals_blocked():
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _end(self) -> int:
        """Close the pipes and reap the child; returns its exit code."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdout.close()
        # What it has not read cannot be flushed.
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        return self._child.wait()
