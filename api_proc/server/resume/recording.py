"""One recorded response: the log of its output, which every connection that shows it reads from a place of its own.

engine ──► on_outputs ──► log and file ──► reader.advance(), once the file is written
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from api_proc.server.engine_client import OutputStream
from api_proc.server.rendering import Renderer, Shape
from api_proc.server.resume.files import JournalFile
from api_proc.server.resume.records import Begun, Broken, Delivered, Ended, decode_delivered, encode
from api_proc.server.usage import UsageCounter
from quartet.client.adoption import Progress
from quartet.client.request import Output
from quartet.wire.errors import RequestError


class Reader(Protocol):
    """A connection that shows the response (sse.EventStream). Its methods never block."""

    def advance(self) -> None:
        """The log has grown."""
        ...

    def on_error(self, error: RequestError) -> None:
        """The log ends with an error; idempotent."""
        ...

    def give_up(self) -> None:
        """The client reads too slowly."""
        ...


class Recording:
    """One response. `note` is called with each record that belongs into its file.

    `log` has a body of records.Delivered for each increment, of which the first `written` are in the file and may be
    read. `release` gives back its place in the admission. While it `is_kept`, `log` is complete and the response can
    be read again; afterwards it holds what is not read yet.
    """

    def __init__(
        self,
        begun: Begun,
        shape: Shape,
        usage: UsageCounter,
        release: ExitStack,
        note: Callable[["Recording", bytes], None],
    ) -> None:
        self.begun = begun
        self.usage = usage
        self.log: list[bytes] = []
        self.log_bytes = 0
        self.written = 0
        self.size_bytes = 0
        self.error: RequestError | None = None
        self.reader: Reader | None = None
        self.file: JournalFile | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.is_kept = True
        self.release = release
        self._shape = shape
        self._note = note
        self._outputs: list[OutputStream] = []

    @property
    def is_over(self) -> bool:
        """Whether no output will follow."""
        return self.error is not None or self.usage.is_complete

    def renderer(self) -> Renderer:
        """Return a renderer that has written nothing."""
        return self._shape.renderer(self.begun.prompts, self.begun.choices_each)

    def follow(self, outputs: Iterable[tuple[int, OutputStream]]) -> None:
        """Record the output of the engine's requests, each given with the number of its first choice."""
        for base, output in outputs:
            self._outputs.append(output)
            output.subscribe(partial(self._on_outputs, base), self._on_error)

    def load(self, body: bytes) -> None:
        """Take an increment that is in the file already."""
        self._append(body)
        self.written += 1

    def restore(self) -> list[Progress]:
        """Count what was loaded, of a response that has not ended; returns the progress of each choice."""
        progress = [Progress() for _ in self.usage.counts]
        for delivered in map(decode_delivered, self.log):
            self.usage.restore(delivered.base, delivered.output, delivered.time_s)
            progress[delivered.base + delivered.output.choice].add(delivered.output)
        return progress

    def abort(self) -> None:
        """End what is unfinished of it in the engine, and give up its place. Idempotent."""
        if not self.usage.is_complete:
            for output in self._outputs:
                output.abort()
        self.release.close()

    def trim(self, count: int) -> None:
        """Drop the first increments of the log: the only connection that will ever show them has read them."""
        self.log_bytes -= sum(map(len, self.log[:count]))
        del self.log[:count]
        self.written -= count

    def publish(self) -> None:
        """The log is in the file: have the reader write what has come."""
        self.written = len(self.log)
        if self.reader is not None:
            self.reader.advance()
            if self.error is not None:
                self.reader.on_error(self.error)

    def _on_outputs(self, base: int, outputs: list[Output]) -> None:
        if self.is_over:
            return
        now = self.usage.add(base, outputs)
        for output in outputs:
            body = encode(Delivered(self.begun.stream, base, now, output))
            self._append(body)
            self._note(self, body)
        if self.usage.is_complete:
            self._note(self, encode(Ended(self.begun.stream, self.usage.totals())))
            self.usage.close()
            self.release.close()

    def _append(self, body: bytes) -> None:
        self.log.append(body)
        self.log_bytes += len(body)

    def _on_error(self, error: RequestError) -> None:
        if self.is_over:
            return
        self.error = error
        self.abort()
        self._note(self, encode(Broken.of(self.begun.stream, error)))
