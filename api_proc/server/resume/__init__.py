"""Streams that outlive their connection, and the api process itself.

A request with the header X-Quartet-Resume is recorded: its output goes into a log, in memory and in the run directory,
before it goes to the client, and every connection reads the log. A client that has lost its connection
reads on from the event after the last that it has seen; the successor of a dead api process reads the files, and
submits again what is unfinished.

    records.py       the records of the files; sans-IO
    files.py         append-only files, many streams in each
    recording.py     one response: its log, its reader
    recordings.py    all of them: expiry, bounds
    recovery.py      the start of a process whose predecessor has died
    log_reader.py    from the log to the events of one connection
    siblings.py      streams that another api process records
    serving.py       the HTTP side: POST with the header, GET /v1/streams/{id}
"""
