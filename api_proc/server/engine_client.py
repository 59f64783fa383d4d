"""The engine client as handlers use it.

The Protocols are exactly what they use of `quartet.client.async_engine`; the tests implement them by a fake.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from quartet.client.adoption import Adopted
from quartet.client.request import GenerateRequest, Output
from quartet.runtime.core import Metrics
from quartet.wire.errors import RequestError
from quartet.wire.frames import Encoded, ProcessTable, Snapshot
from quartet.wire.ids import Rid


class OutputStream(Protocol):
    """One accepted request. Output that came before `subscribe` is delivered by it."""

    @property
    def rid(self) -> Rid:
        """The request's id."""
        ...

    @property
    def encoded(self) -> Encoded:
        """What the tokenizer has made of the prompt."""
        ...

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt as the tokenizer encoded it."""
        ...

    @property
    def prompt_text(self) -> str:
        """The prompt's text; empty for ids that are not echoed."""
        ...

    def subscribe(self, on_output: Callable[[list[Output]], None], on_error: Callable[[RequestError], None]) -> None:
        """Have every increment pushed, on the loop thread."""
        ...

    def abort(self) -> None:
        """Free the request; idempotent."""
        ...


class EngineClient(Protocol):
    """The engine client as handlers use it."""

    @property
    def is_accepting(self) -> bool:
        """All roles are ready and nothing is draining."""
        ...

    @property
    def is_alive(self) -> bool:
        """The engine was ready once; it runs or recovers."""
        ...

    @property
    def process_table(self) -> ProcessTable:
        """The process table."""
        ...

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The newest snapshot of each process, by process name."""
        ...

    def journal_metrics(self) -> Metrics:
        """The engine client's own numbers."""
        ...

    def generate(self, request: GenerateRequest) -> Awaitable[OutputStream]:
        """Return once every choice is accepted; raise RequestError if one is refused."""
        ...

    def encode(self, request: GenerateRequest) -> Awaitable[Encoded]:
        """Return what the tokenizer makes of a request's prompt, of which nothing is generated; raise RequestError."""
        ...

    def adopt(self, adopted: Adopted) -> OutputStream:
        """Go on with a request of this process's predecessor."""
        ...

    def note_written(self, rid: Rid, seconds: float) -> None:
        """Tell the scheduler how long after its last output a response was written."""
        ...

    def query(self, what: str, argument: str = "", tenant: str | None = None) -> Awaitable[bytes]:
        """Return the scheduler's reply as JSON; raise RequestError 503 if none comes."""
        ...
