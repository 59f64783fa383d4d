"""Recorded streams: what cannot be written, or takes too much, costs the resumption and never the stream."""

import asyncio
import os
from pathlib import Path

import pytest
from conftest import Api, MakeApi
from resume_rig import CHAT, RESUME, begin, body_of, events_of, number_of, read_on, settle, settle_until, status_of

from api_proc.server.pipe import ResponsePipe
from api_proc.server.resume import recordings
from api_proc.server.resume.files import JournalFile
from api_proc.server.resume.records import Delivered, encode, framed
from quartet.client.request import Output


async def test_what_cannot_be_written_is_sent_all_the_same(make_api: MakeApi, tmp_path: Path) -> None:
    (tmp_path / "api-0.streams").touch()
    api = await make_api(run_dir=tmp_path)
    response, [output] = await begin(api, CHAT)
    output.text("one")
    output.finish_all()
    events = await events_of(response)
    assert "one" in events[1] and "[DONE]" in events[-1]
    assert api.service.recordings.metrics().gauges["journal_degraded"] == 1
    assert await events_of(await read_on(api, response, events[0])) == events[1:]


async def test_a_write_that_fails_costs_the_adoption_alone(make_api: MakeApi, tmp_path: Path) -> None:
    api = await make_api(run_dir=tmp_path)
    response, [output] = await begin(api, CHAT)
    output.text("one")
    await settle()
    [recording] = api.service.recordings._kept.values()
    assert recording.file is not None
    os.close(recording.file.descriptor)
    recording.file.descriptor = os.open(os.devnull, os.O_RDONLY)
    output.text("two")
    output.finish_all()
    assert len(await events_of(response)) == 5
    assert api.service.recordings.metrics().gauges["journal_degraded"] == 1
    second = await make_api(run_dir=tmp_path, epoch=2)
    assert await status_of(second, response) == 404
    again, [output] = await begin(api, CHAT)
    await settle()
    assert api.service.recordings.metrics().gauges["journal_degraded"] == 0
    again.close()


async def test_a_response_that_is_too_long_to_keep_is_streamed_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_STREAM_BYTES", 2000)
    response, [output] = await begin(api, CHAT)
    events = []
    for number in range(100):
        output.text(f"word {number}")
        events += await events_of(response, 1)
    events += await events_of(response, 1)
    assert [number_of(event) for event in events] == list(range(101))
    assert await status_of(api, response) == 410
    response.close()
    await settle_until(output.aborted.is_set)
    assert api.service.recordings._size_bytes == 0


async def test_what_is_too_long_to_keep_is_not_kept_for_a_slow_reader(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    response, [output] = await begin(api, CHAT)
    monkeypatch.setattr(recordings, "MAX_STREAM_BYTES", 1 << 20)
    for _ in range(2000):
        output.text("x" * 20_000)
        await asyncio.sleep(0)
        if output.aborted.is_set():
            break
    await settle_until(output.aborted.is_set)
    assert api.service.stats.clients_stalled == 1
    response.close()


async def test_the_oldest_are_dropped_when_too_much_is_kept(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_BYTES", 4500)
    begun = [await begin(api, CHAT) for _ in range(3)]
    for response, [output] in begun:
        output.text("x" * 1500)
        output.finish_all()
        assert "[DONE]" in (await events_of(response))[-1]
    assert [await status_of(api, response) for response, _ in begun] == [410, 200, 200]
    assert api.service.recordings._size_bytes <= 4500


async def test_no_more_is_recorded_when_most_of_the_bound_is_taken(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_BYTES", 4000)
    response, [output] = await begin(api, CHAT)
    output.text("x" * 3200)
    output.finish_all()
    await events_of(response)
    other = await api.http.post(api.url + CHAT, json=body_of(CHAT), headers=RESUME)
    assert other.status == 200 and "Content-Location" not in other.headers
    other.close()


async def test_a_client_that_catches_up_gets_every_event(api: Api) -> None:
    response, [output] = await begin(api, CHAT)
    # More than the transport and the sockets hold.
    words = [f"{number} " + "x" * 20_000 for number in range(300)]
    for word in words:
        output.text(word)
    await asyncio.sleep(0.2)
    output.finish_all()
    events = await events_of(response)
    assert [number_of(event) for event in events] == list(range(len(words) + 3))
    assert all(word in event for word, event in zip(words, events[1:], strict=False))
    assert await events_of(await read_on(api, response, events[100])) == events[101:]


@pytest.mark.parametrize("is_record", [False, True])
async def test_a_record_that_cannot_be_read_costs_its_file_and_no_start(
    make_api: MakeApi, tmp_path: Path, is_record: bool
) -> None:
    first = await make_api(run_dir=tmp_path)
    response, [output] = await begin(first, CHAT)
    output.text("one")
    await settle()
    response.close()
    [path] = (tmp_path / "api-0.streams").iterdir()
    body = encode(Delivered(output.rid, 7, 0.0, Output(9, [1], "x", None, None))) if is_record else b"\xc1"
    path.write_bytes(path.read_bytes() + framed(body))
    second = await make_api(run_dir=tmp_path, epoch=2)
    assert not second.engine.adopted and not list(second.service.recordings)
    assert await status_of(second, response) == 410


async def new_file(api: Api, folder: Path) -> Path:
    response, [output] = await begin(api, CHAT)
    output.text("one")
    await settle()
    response.close()
    return max((folder / "api-0.streams").iterdir())


async def test_recoveries_that_never_end_are_given_up(make_api: MakeApi, tmp_path: Path) -> None:
    first = await make_api(run_dir=tmp_path)
    await new_file(first, tmp_path)
    tries = tmp_path / "api-0.streams" / "tries"
    tries.write_bytes(b"x" * 2)
    assert len((await make_api(run_dir=tmp_path, epoch=2)).engine.adopted) == 1
    assert not tries.exists()
    tries.write_bytes(b"x" * 3)
    assert not (await make_api(run_dir=tmp_path, epoch=3)).engine.adopted
    assert not list((tmp_path / "api-0.streams").iterdir())


async def test_what_was_forgotten_is_not_adopted_and_told_from_the_unknown(make_api: MakeApi, tmp_path: Path) -> None:
    first = await make_api(run_dir=tmp_path)
    kept, [_] = await begin(first, CHAT)
    forgotten, [output] = await begin(first, CHAT)
    last, [_] = await begin(first, CHAT)
    output.text("one")
    await settle()
    for response in (kept, forgotten, last):
        response.close()
    first.service.recordings.forget(list(first.service.recordings)[1])
    await settle()
    second = await make_api(run_dir=tmp_path, epoch=2)
    assert len(second.engine.adopted) == 2
    assert await status_of(second, forgotten) == 410
    assert await status_of(second, kept) == await status_of(second, last) == 200


async def test_output_is_in_the_file_before_it_is_sent(
    make_api: MakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await make_api(run_dir=tmp_path)
    response, [output] = await begin(api, CHAT)
    await events_of(response, 1)
    order = []
    write, send = JournalFile.write, ResponsePipe.write
    monkeypatch.setattr(JournalFile, "write", lambda file: order.append("written") or write(file))
    monkeypatch.setattr(ResponsePipe, "write", lambda pipe, data: order.append("sent") or send(pipe, data))
    for _ in range(3):
        output.text("a")
        output.text("b")
        assert len(await events_of(response, 2)) == 2
    assert order == ["written", "sent", "sent"] * 3
    response.close()


async def test_a_reader_that_fails_costs_no_other(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = [await begin(api, CHAT) for _ in range(2)]
    for response, _ in begun:
        await events_of(response, 1)
    failing = next(iter(api.service.recordings))
    assert failing.reader is not None
    monkeypatch.setattr(failing.reader, "advance", lambda: 1 / 0)
    for _, [output] in begun:
        output.text("one")
        output.finish_all()
    assert "[DONE]" in (await events_of(begun[1][0]))[-1]
    assert not await events_of(begun[0][0])
    begun[0][0].close()
    assert "[DONE]" in (await events_of(await read_on(api, begun[0][0])))[-1]
