"""The start of an api process whose predecessor has died: the files are read, and what is unfinished goes on.

A bug that a record sets off must not end each successor again: what cannot be read or adopted is forgotten, and after
MOST_TRIES deaths in the middle of this, everything is.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress

import msgspec

from api_proc.server.rendering import Shape
from api_proc.server.resume.files import JournalFile
from api_proc.server.resume.recording import Recording
from api_proc.server.resume.records import Begun, Broken, Ended, Forgotten, decode, stream_of_delivered
from api_proc.server.service import Service
from quartet.client.adoption import Adopted
from quartet.wire.errors import RequestError
from quartet.wire.ids import Epoch

log = logging.getLogger(__name__)

MOST_TRIES = 3

ReadShape = Callable[[msgspec.Raw], Shape]


class Recovery:
    """Takes over the recordings of the predecessors.

    Args:
        service: its engine goes on with what is unfinished, and its admission counts that.
        epoch: of this process.
        read_shape: reads Begun.shape.
    """

    def __init__(self, service: Service, epoch: Epoch, read_shape: ReadShape) -> None:
        self._recordings = service.recordings
        self._files = service.recordings.files
        self._engine = service.engine
        self._admission = service.admission
        self._epoch = epoch
        self._read_shape = read_shape

    def run(self) -> None:
        """Do it; call it before anything else is recorded."""
        if self._files.begin_recovery() > MOST_TRIES:
            log.error("recorded streams are dropped: their recovery did not end %d times", MOST_TRIES)
            self._files.remove_all()
        for file, bodies in self._files.recover():
            # The file stays while it is read, also if its first streams are forgotten.
            file.streams += 1
            try:
                for body in bodies:
                    self._take(file, body)
            except Exception:
                log.exception("a file of recorded streams cannot be read")
                self._recordings.forget_all(file)
            file.streams -= 1
            self._files.release(file)
        for recording in list(self._recordings):
            try:
                self._adopt(recording)
            except Exception:
                log.exception("a recorded stream cannot be adopted")
                self._recordings.forget(recording)
        self._files.end_recovery()

    def _take(self, file: JournalFile, body: bytes) -> None:
        # Nearly all records are increments, which need not be decoded if the response has ended.
        stream = stream_of_delivered(body)
        if stream is not None:
            self._recordings.load(stream, body)
            return
        record = decode(body)
        if isinstance(record, Begun):
            self._recordings.restore(record, self._read_shape(record.shape), file)
            return
        recording = self._recordings.get(record.stream)
        match record:
            case Broken() if recording is not None:
                recording.error = record.error()
            case Ended() if recording is not None:
                recording.usage.restore_totals(record.totals)
            case Forgotten() if recording is not None:
                self._recordings.forget(recording)

    def _adopt(self, recording: Recording) -> None:
        begun, each = recording.begun, recording.begun.choices_each
        if not recording.is_over:
            progress = recording.restore()
            recording.release = self._admitted(begun)
            for index, prompt in enumerate(begun.prompts):
                choices = progress[index * each : (index + 1) * each]
                if not all(choice.is_finished for choice in choices):
                    adopted = Adopted(
                        request=prompt.request,
                        rid=prompt.rid,
                        encoded=prompt.encoded,
                        start_s=begun.start_s,
                        choices=choices,
                        epoch=self._epoch,
                    )
                    recording.follow([(index * each, self._engine.adopt(adopted))])
        self._recordings.await_reader(recording)

    def _admitted(self, begun: Begun) -> ExitStack:
        """Count what goes on as admitted and running, even beyond the limits; returns what gives the place back."""
        release = ExitStack()
        with suppress(RequestError):
            place = release.enter_context(self._admission.enter(begun.owner))
            place.claim(len(begun.prompts) * begun.choices_each, begun.prompts[0].request.priority)
            place.on_output()
        return release
