"""From the log of a recorded response to the events of one connection: a Backlog that starts at the beginning.

What the client has seen already is rendered again and left out by its EventIds, so that it does not matter which
process wrote it, and what the renderer has to remember is as it was.
"""

from api_proc.server.backlog import Increment
from api_proc.server.resume.recording import Recording
from api_proc.server.resume.records import decode_delivered
from api_proc.server.usage import ReaderUsage
from quartet.client.request import Output


class LogReader:
    """Implements Backlog for one connection; `usage` counts what has been read."""

    def __init__(self, recording: Recording, usage: ReaderUsage) -> None:
        self._recording = recording
        self._usage = usage
        self._next = 0

    def __bool__(self) -> bool:
        return self._next < self._recording.written

    def add(self, base: int, outputs: list[Output]) -> None:
        """Nothing is pushed: the log has it."""

    def pop(self) -> Increment:
        """Return the next increment of the log."""
        recording = self._recording
        delivered = decode_delivered(recording.log[self._next])
        self._next += 1
        if not recording.is_kept and self._next == recording.written:
            recording.trim(self._next)
            self._next = 0
        output = delivered.output
        self._usage.add(delivered.base, (output,))
        return Increment(delivered.base + output.choice, output.ids, output.text, output.logprobs, output.finish)

    def clear(self) -> None:
        """Read nothing else."""
        self._next = self._recording.written
