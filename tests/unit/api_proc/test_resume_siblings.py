"""Several api processes: each gives the streams of the others, with their status, to their keys."""

import asyncio
from pathlib import Path
from typing import Any

from conftest import Api, MakeApi
from fake_engine import FakeOutputStream, stay_silent
from resume_rig import CHAT, RESUME, begin, body_of, events_of, left, number_of, read_on, settle_until, status_of

from api_proc.server.resume import siblings
from api_proc.server.resume.siblings import Siblings
from quartet.wire.ids import Rid


class OwnIds(FakeOutputStream):
    """A request with the id that the process has chosen."""

    def __init__(self, request: Any, rid: Rid) -> None:
        super().__init__(request, request.rid or rid)


async def pair(make_api: MakeApi, folder: Path, monkeypatch: Any, **server: Any) -> tuple[Api, Api]:
    monkeypatch.setattr("fake_engine.FakeOutputStream", OwnIds)
    return tuple([await make_api(run_dir=folder, rank=rank, api_procs=2, **server) for rank in (0, 1)])  # type: ignore[return-value]


async def test_the_other_process_passes_on(make_api: MakeApi, tmp_path: Path, monkeypatch: Any) -> None:
    for owner, other in (both := await pair(make_api, tmp_path, monkeypatch)), both[::-1]:
        response, [output] = await begin(owner, CHAT)
        output.text("one")
        assert await status_of(other, response) == 409
        seen = await events_of(response, 2)
        response.close()
        await left(owner)
        answer = await read_on(other, response, seen[-1])
        assert answer.headers["Content-Location"] == response.headers["Content-Location"]
        output.text("two")
        output.finish_all()
        assert [number_of(event) for event in await events_of(answer)] == [2, 3, 4]
        assert await events_of(await read_on(other, response)) == await events_of(await read_on(owner, response))


async def test_keys_are_checked_where_the_stream_is(make_api: MakeApi, tmp_path: Path, monkeypatch: Any) -> None:
    owner, other = await pair(make_api, tmp_path, monkeypatch, api_key=("one", "two"))
    owner.engine.script = stay_silent
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    response = await owner.http.post(owner.url + CHAT, json=body_of(CHAT), headers=RESUME | one)
    response.close()
    await left(owner)
    assert [await status_of(other, response, **key) for key in (two, {}, one)] == [404, 401, 200]


async def test_a_client_that_leaves_is_noticed_behind_the_other(
    make_api: MakeApi, tmp_path: Path, monkeypatch: Any
) -> None:
    owner, other = await pair(make_api, tmp_path, monkeypatch)
    response, [output] = await begin(owner, CHAT)
    response.close()
    await left(owner)
    answer = await read_on(other, response)
    assert await events_of(answer, 1)
    answer.close()
    await left(owner)
    output.finish_all()
    assert "[DONE]" in (await events_of(await read_on(other, response)))[-1]


async def test_a_process_that_is_away_is_waited_for(make_api: MakeApi, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(siblings.pass_on, "__defaults__", (0.3,))
    api = await make_api(run_dir=tmp_path, api_procs=2)
    stream = Siblings(None, 1, 2).new_stream().hex()
    status, body, headers = await api.get(f"/v1/streams/{stream}")
    assert status == 503 and body["error"]["code"] == "engine_restarting" and headers["Retry-After"] == "1"
    asked = asyncio.create_task(api.get(f"/v1/streams/{stream}"))
    await make_api(run_dir=tmp_path, api_procs=2, rank=1)
    assert (await asked)[0] == 404
    assert (await api.get(f"/v1/streams/{Siblings(None, 2, 3).new_stream().hex()}"))[0] == 404


async def test_a_stream_whose_process_dies_does_not_seem_to_end(
    make_api: MakeApi, tmp_path: Path, monkeypatch: Any
) -> None:
    owner, other = await pair(make_api, tmp_path, monkeypatch)
    response, [output] = await begin(owner, CHAT)
    output.text("one")
    response.close()
    await left(owner)
    answer = await read_on(other, response)
    assert len(await events_of(answer, 2)) == 2
    for recording in owner.service.recordings:
        recording.reader._pipe.kill()  # type: ignore[union-attr]
    async with asyncio.timeout(20):
        try:
            rest = await answer.content.read()
        except Exception as error:
            rest = type(error).__name__.encode()
    answer.close()
    assert rest == b"ClientPayloadError"
    await settle_until(lambda: all(one.reader is None for one in owner.service.recordings))
