"""All recorded responses of an api process: where they are found, how long they are kept, and how much they may take.

begin ──► live, read ──► live, unread ──► its window passes: aborted
              └──► over ──► its window passes: forgotten
recover: what the files of a dead predecessor hold goes on, unread
"""

import asyncio
import collections
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

import msgspec

from api_proc.server.admission import Admission
from api_proc.server.engine_client import EngineClient, OutputStream
from api_proc.server.rendering import Shape
from api_proc.server.resume.files import JournalFile, JournalFiles
from api_proc.server.resume.recording import Recording
from api_proc.server.resume.records import Begun, Broken, Delivered, Forgotten, encode
from api_proc.server.stats import ApiStats
from api_proc.server.usage import UsageCounter
from quartet.client.adoption import Adopted, Progress
from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics
from quartet.wire.errors import RequestError
from quartet.wire.frames import ID_BYTES
from quartet.wire.ids import Epoch, Rid

MAX_STREAM_BYTES = 8 << 20
"""A response whose log is longer is not kept: its client reads it once, and not too slowly."""
MAX_BYTES = 64 << 20
"""Bound on the files, and on the logs in memory: the oldest responses are not kept beyond it."""
EXPIRED_COUNT = 4096
"""How many expired responses are told from unknown ones."""

ReadShape = Callable[[msgspec.Raw], Shape]


class Recordings:
    """The recorded responses of one process.

    Args:
        engine: goes on with what a predecessor has left.
        admission: counts what goes on without a connection.
        files: where they are written; read by `recover` alone.
    """

    def __init__(
        self, engine: EngineClient, clock: Clock, stats: ApiStats, admission: Admission, files: JournalFiles
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._stats = stats
        self._admission = admission
        self._files = files
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
        return max(self._size_bytes, self._files.size_bytes) > MAX_BYTES // 2

    def metrics(self) -> Metrics:
        """Return how much is recorded, and whether it can be written."""
        gauges = {
            "recorded_streams": float(len(self._kept)),
            "journal_bytes": float(self._files.size_bytes),
            "journal_degraded": float(self._files.is_degraded),
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
        recording.file = self._files.take()
        self._note(recording, encode(begun))
        recording.follow((index * begun.choices_each, output) for index, output in enumerate(outputs))
        self._await_reader(recording)
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
            self._await_reader(recording)
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
            self._files.append(recording.file, encode(Forgotten(stream)))
            recording.file.streams -= 1
            self._files.release(recording.file)
            recording.file = None
            self._flush_soon()
        if recording.reader is None:
            recording.abort()

    def flush(self) -> None:
        """Write what has come to the files, then have the readers send it."""
        self._is_flush_due = False
        changed, self._changed = self._changed, {}
        for file in self._files.flush():
            self._lose(file)
        for recording in changed:
            recording.publish()
            if recording.is_over and recording.reader is None and recording.is_kept:
                self._await_reader(recording)
        self._keep_bounds(changed)

    # Recovery

    def recover(self, epoch: Epoch, read_shape: ReadShape) -> None:
        """Take over what the predecessor has recorded; `epoch` is this process's. Call it before anything else."""
        progress: dict[Rid, list[Progress]] = {}
        for file, records in self._files.recover():
            for record, body in records:
                self._count(self._kept.get(record.stream), len(body))
                match record:
                    case Begun():
                        recording = self._make(record, read_shape(record.shape), ExitStack(), lambda: None)
                        recording.file = file
                        file.streams += 1
                        progress[record.stream] = [Progress() for _ in recording.usage.counts]
                    case Delivered() if record.stream in self._kept:
                        self._kept[record.stream].restore(record, body)
                        progress[record.stream][record.base + record.output.choice].add(record.output)
                    case Broken() if record.stream in self._kept:
                        self._kept[record.stream].error = record.error()
                    case Forgotten() if record.stream in self._kept:
                        self.forget(self._kept[record.stream])
            self._files.release(file)
        for recording in list(self._kept.values()):
            self._adopt(recording, progress[recording.begun.stream], epoch)

    def _adopt(self, recording: Recording, progress: list[Progress], epoch: Epoch) -> None:
        each = recording.begun.choices_each
        if not recording.is_over:
            recording.release = self._admitted(recording.begun)
            for index, prompt in enumerate(recording.begun.prompts):
                choices = progress[index * each : (index + 1) * each]
                if not all(choice.is_finished for choice in choices):
                    adopted = Adopted(
                        request=prompt.request,
                        rid=prompt.rid,
                        encoded=prompt.encoded,
                        start_s=recording.begun.start_s,
                        choices=choices,
                        epoch=epoch,
                    )
                    recording.follow([(index * each, self._engine.adopt(adopted))])
        self._await_reader(recording)

    def _admitted(self, begun: Begun) -> ExitStack:
        """Count what goes on as admitted and running, even beyond the limits; returns what gives the place back."""
        release = ExitStack()
        with suppress(RequestError):
            place = release.enter_context(self._admission.enter(begun.owner))
            place.claim(len(begun.prompts) * begun.choices_each, begun.prompts[0].request.priority)
            place.on_output()
        return release

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
            self._files.append(recording.file, body)
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

    def _await_reader(self, recording: Recording) -> None:
        if recording.expiry is not None:
            recording.expiry.cancel()
        expire = partial(self._expire, recording)
        recording.expiry = asyncio.get_running_loop().call_later(recording.begun.window_s, expire)

    def _expire(self, recording: Recording) -> None:
        if recording.is_kept and recording.reader is None:
            self.forget(recording)

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
        while self._kept and max(self._size_bytes, self._files.size_bytes) > MAX_BYTES:
            oldest = next(iter(self._kept.values()))
            file = oldest.file
            for recording in list(self._kept.values()):
                if recording is oldest or (file is not None and recording.file is file):
                    self.forget(recording)
