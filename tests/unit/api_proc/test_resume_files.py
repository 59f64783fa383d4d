"""The files of recorded streams: what is whole is read back, whatever the end of a file looks like."""

import os
import random
import resource
from pathlib import Path

import pytest

from api_proc.server.resume import files as files_module
from api_proc.server.resume.files import JournalFile, JournalFiles
from api_proc.server.resume.records import (
    HEADER,
    Broken,
    DamagedError,
    Delivered,
    Ended,
    Forgotten,
    decode,
    encode,
    framed,
    scan,
    stream_of_delivered,
)
from api_proc.server.usage import Totals
from quartet.client.request import Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import Finish, TextLogprobs, Timings
from quartet.wire.ids import Rid

STREAM = Rid(bytes(range(16)))
LOGPROBS = [TextLogprobs("ö", b"\xc3\xb6", -0.5, (("x", b"x", -1.5),), 3)]
RECORDS = [
    Delivered(STREAM, 0, 1.5, Output(1, [7, 8], "wörld\n\n", LOGPROBS, None)),
    Delivered(STREAM, 2, 1.75, Output(0, [], "", None, Finish("stop", "END", 9, Timings(cached_tokens=3)))),
    Ended(STREAM, Totals(1.5, 1.75, [9], [Finish("stop", None, 9, Timings())])),
    Broken.of(STREAM, RequestError(408, "deadline_exceeded", "late", None, 1.0)),
    Forgotten(STREAM),
]
BODIES = [encode(record) for record in RECORDS]
DATA = b"".join(map(framed, BODIES))


def test_records_come_back() -> None:
    assert [decode(body) for body in BODIES] == RECORDS
    assert scan(DATA) == (BODIES, len(DATA))
    assert scan(b"") == ([], 0)
    assert [stream_of_delivered(body) for body in BODIES] == [STREAM, STREAM, None, None, None]


def test_a_file_that_ends_anywhere_gives_its_whole_records() -> None:
    ends = [len(b"".join(map(framed, BODIES[:count]))) for count in range(len(BODIES) + 1)]
    for length in range(len(DATA) + 1):
        found = scan(DATA[:length])
        count = sum(end <= length for end in ends) - 1
        assert (found.bodies, found.good_bytes) == (BODIES[:count], ends[count])


def test_damage_is_told_from_an_incomplete_end() -> None:
    chance = random.Random(3)
    for _ in range(200):
        at = chance.randrange(len(DATA))
        damaged = bytearray(DATA)
        damaged[at] ^= 1 << chance.randrange(8)
        try:
            found = scan(bytes(damaged))
        except DamagedError:
            continue
        # Only a length that has become too long looks like the end of the file.
        assert found.bodies == BODIES[: len(found.bodies)] and found.good_bytes <= at < found.good_bytes + HEADER.size


def stored(files: JournalFiles, *bodies: bytes) -> JournalFile:
    """Return the file that has taken one more stream."""
    file = files.take()
    assert file is not None
    for body in bodies:
        files.append(file, body)
    assert files.flush() == []
    return file


def test_files_are_private_and_removed_with_their_last_stream(tmp_path: Path) -> None:
    files = JournalFiles(tmp_path / "streams")
    file = stored(files, *BODIES)
    path = file.path
    assert stored(files) is file and file.streams == 2
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_bytes() == DATA and files.size_bytes == len(DATA)
    for left in (1, 0):
        file.streams = left
        files.release(file)
        assert path.exists() == bool(left)
    assert files.size_bytes == 0


def test_a_full_file_takes_no_further_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "FULL_BYTES", 10)
    files = JournalFiles(tmp_path)
    paths = [stored(files, BODIES[0]).path for _ in range(3)]
    assert len(set(paths)) == 3
    assert [file.path for file, _ in JournalFiles(tmp_path).recover()] == paths


def test_the_successor_cuts_off_what_is_incomplete_and_goes_on(tmp_path: Path) -> None:
    path = stored(JournalFiles(tmp_path), *BODIES[:2]).path
    with path.open("ab") as end:
        end.write(framed(BODIES[2])[:-1])
    files = JournalFiles(tmp_path)
    [(file, records)] = files.recover()
    assert records == BODIES[:2]
    files.append(file, BODIES[3])
    files.flush()
    assert scan(path.read_bytes()).bodies == [*BODIES[:2], BODIES[3]]
    file.streams = 1
    assert stored(files) is file


def test_a_damaged_file_is_removed_and_the_others_are_read(tmp_path: Path) -> None:
    for name, data in (("0", DATA), ("1", DATA[:9] + b"\xff" + DATA[10:]), ("tries", b"x"), ("3", DATA)):
        (tmp_path / name).write_bytes(data)
    assert [file.path.name for file, _ in JournalFiles(tmp_path).recover()] == ["0", "3"]
    assert sorted(os.listdir(tmp_path)) == ["0", "3", "tries"]


def test_what_cannot_be_written_costs_its_file_alone(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = JournalFiles(tmp_path)
    file = stored(files, BODIES[0])
    files.append(file, BODIES[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.size_bytes + 5, limits[1]))
    try:
        assert files.flush() == [file] and files.is_degraded
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not file.path.exists() and files.size_bytes == 0
    stored(files, BODIES[0])
    assert not files.is_degraded


def test_a_folder_that_cannot_be_made_is_a_degraded_journal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = JournalFiles(tmp_path / "file" / "streams")
    assert files.take() is None and files.is_degraded
    assert list(files.recover()) == []
