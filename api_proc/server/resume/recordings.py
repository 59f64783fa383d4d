"""All recorded responses of an api process: where they are found, how long they are kept, and how much they may take.

begin ──► live, read ──► live, unread ──► its window passes: aborted
              └──► over ──► its window passes: forgotten
what the files of a dead predecessor hold goes on, unread (recovery.py)
"""

import asyncio
import collections
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from api_proc.server.engine_client import OutputStream
from api_proc.server.rendering import Shape
from api_proc.server.resume.files import JournalFile, JournalFiles
from api_proc.server.resume.recording import Recording
from api_proc.server.resume.records import Begun, Forgotten, encode
from api_proc.server.stats import ApiStats
from api_proc.server.usage import UsageCounter
from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics
from quartet.wire.errors import RequestError
from quartet.wire.frames import ID_BYTES
from quartet.wire.ids import Rid

log = logging.getLogger(__name__)

MAX_STREAM_BYTES = 8 << 20
"""A response whose log is longer is not kept: its client reads it once, and not too slowly."""
MAX_BYTES = 32 << 20
"""Bound on the files, and on the logs in memory: the oldest responses are not kept beyond it, and no more are recorded
beyond three quarters of it. A successor reads this much in about a second."""
EXPIRED_COUNT = 4096
"""How many expired responses are told from unknown ones."""


class Recordings:
    """The recorded responses of one process.

    Args:
        files: where they are written.
    """

    def __init__(self, clock: Clock, stats: ApiStats, files: JournalFiles) -> None:
        self._clock = clock
        self._stats = stats
        self.files = files
        self._kept: dict[Rid, Recording] = {}
        self._expired: collections.OrderedDict[Rid, str] = collections.OrderedDict()
        """The owners of responses that are not kept any more."""
        self._changed: dict[Recording, None] = {}
        self._size_bytes = 0
        self._is_flush_due = False
        self._resumed = 0

    @property
    def is_full(self) -> bool:
        """Whether no more responses are to be recorded."""
        return max(self._size_bytes, self.files.size_bytes) > MAX_BYTES * 3 // 4

    def metrics(self) -> Metrics:
        """Return how much is recorded, and whether it can be written."""
        gauges = {
            "recorded_streams": float(len(self._kept)),
            "journal_bytes": float(self.files.size_bytes),
            "journal_degraded": float(self.files.is_degraded),
        }
        return Metrics(gauges, {"streams_resumed": float(self._resumed)})

    def begin(
        self,
        begun: Begun,
        shape: Shape,
        outputs: Sequence[OutputStream],
        release: ExitStack,
        on_first: Callable[[], None],
    ) -> Recording:
        """Record a response that the engine has accepted."""
        recording = self._make(begun, shape, release, on_first)
        recording.file = self.files.take()
        self._note(recording, encode(begun))
        recording.follow((index * begun.choices_each, output) for index, output in enumerate(outputs))
        self.await_reader(recording)
        return recording

    def find(self, stream: Rid, owner: str) -> Recording:
        """Return a response that may be read: RequestError 404, 410 once it is not kept, 409 while it is read.

        What belongs to another key is as unknown as what never was.
        """
        recording = self._kept.get(stream)
        if recording is None or recording.begun.owner != owner:
            if self._expired.get(stream) == owner:
                raise RequestError(410, "stream_expired", "This stream is not kept any more.")
            raise RequestError(404, "stream_not_found", "There is no such stream, or it is not this key's.")
        if recording.reader is not None:
            message = "This stream is being read by another connection."
            raise RequestError(409, "stream_in_use", message, None, 1.0)
        self._resumed += 1
        return recording

    def leave(self, recording: Recording) -> None:
        """The reader has left."""
        recording.reader = None
        if recording.is_kept:
            self.await_reader(recording)
        else:
            recording.abort()

    def forget(self, recording: Recording) -> None:
        """Keep a response no longer; one without a reader ends."""
        stream = recording.begun.stream
        del self._kept[stream]
        self._expired[stream] = recording.begun.owner
        if len(self._expired) > EXPIRED_COUNT:
            self._expired.popitem(last=False)
        self._size_bytes -= recording.size_bytes
        recording.is_kept = False
        if recording.expiry is not None:
            recording.expiry.cancel()
        if recording.file is not None:
            self.files.append(recording.file, encode(Forgotten(stream)))
            recording.file.streams -= 1
            self.files.release(recording.file)
            recording.file = None
            self._flush_soon()
        if recording.reader is None:
            recording.abort()

    def forget_all(self, file: JournalFile) -> None:
        """Keep no response that lies in a file."""
        for recording in [one for one in self._kept.values() if one.file is file]:
            self.forget(recording)

    def flush(self) -> None:
        """Write what has come to the files, then have the readers send it."""
        self._is_flush_due = False
        changed, self._changed = self._changed, {}
        for file in self.files.flush():
            self._lose(file)
        for recording in changed:
            self._publish(recording)
            if recording.is_over and recording.reader is None and recording.is_kept:
                self.await_reader(recording)
        self._keep_bounds(changed)

    # What a predecessor has recorded (recovery.py)

    def __iter__(self) -> Iterator[Recording]:
        return iter(self._kept.values())

    def get(self, stream: Rid) -> Recording | None:
        """Return a response that is kept."""
        return self._kept.get(stream)

    def restore(self, begun: Begun, shape: Shape, file: JournalFile) -> None:
        """Keep a response that lies in a file."""
        recording = self._make(begun, shape, ExitStack(), lambda: None)
        recording.file = file
        file.streams += 1

    def load(self, stream: Rid, body: bytes) -> None:
        """Add an increment to the log of a response that is kept."""
        recording = self._kept.get(stream)
        if recording is not None:
            recording.load(body)
            self._count(recording, len(body))

    # Parts

    def _make(self, begun: Begun, shape: Shape, release: ExitStack, on_first: Callable[[], None]) -> Recording:
        usage = UsageCounter(
            [len(prompt.encoded.ids) // ID_BYTES for prompt in begun.prompts],
            begun.choices_each,
            begun.start_s,
            self._clock,
            self._stats,
            on_first,
        )
        recording = self._kept[begun.stream] = Recording(begun, shape, usage, release, self._note)
        return recording

    def _note(self, recording: Recording, body: bytes) -> None:
        """Have a record written, and the recording published, at the end of this turn of the loop."""
        if recording.file is not None:
            self.files.append(recording.file, body)
        self._count(recording, len(body))
        self._changed[recording] = None
        self._flush_soon()

    def _count(self, recording: Recording | None, size_bytes: int) -> None:
        if recording is not None and recording.is_kept:
            recording.size_bytes += size_bytes
            self._size_bytes += size_bytes

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def await_reader(self, recording: Recording) -> None:
        """Begin the window in which a reader may come."""
        if recording.expiry is not None:
            recording.expiry.cancel()
        expire = partial(self._expire, recording)
        recording.expiry = asyncio.get_running_loop().call_later(recording.begun.window_s, expire)

    def _expire(self, recording: Recording) -> None:
        if recording.is_kept and recording.reader is None:
            self.forget(recording)

    def _publish(self, recording: Recording) -> None:
        try:
            recording.publish()
        except Exception:
            # The others have to be published all the same.
            log.exception("a recorded stream could not be written")
            if recording.reader is not None:
                recording.reader.give_up()

    def _lose(self, file: JournalFile) -> None:
        for recording in self._kept.values():
            if recording.file is file:
                recording.file = None

    def _keep_bounds(self, changed: dict[Recording, None]) -> None:
        for recording in changed:
            if recording.is_kept and recording.size_bytes > MAX_STREAM_BYTES:
                self.forget(recording)
            elif not recording.is_kept and recording.log_bytes > MAX_STREAM_BYTES and recording.reader is not None:
                recording.reader.give_up()
        while self._kept and max(self._size_bytes, self.files.size_bytes) > MAX_BYTES:
            oldest = next(iter(self._kept.values()))
            if oldest.file is None:
                self.forget(oldest)
            else:
                self.forget_all(oldest.file)
