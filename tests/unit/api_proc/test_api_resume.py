"""Recorded streams: what follows any event is exact, on another connection and in another process."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Api, MakeApi
from fake_engine import WORDS, stay_silent
from resume_rig import (
    CHAT,
    ENDS,
    KINDS,
    RESUME,
    TEXT,
    begin,
    body_of,
    events_of,
    left,
    number_of,
    read_on,
    script_of,
    settle,
    settle_until,
    status_of,
)

from quartet.wire.errors import RequestError


async def undisturbed(api: Api, path: str, more: dict[str, Any]) -> list[str]:
    response, outputs = await begin(api, path, **more)
    for index, output in script_of(outputs):
        outputs[index].push(output)
    return await events_of(response)


def without_times(event: str) -> str:
    return event.partition(',"timings":')[0]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_successor_writes_the_same_bytes_from_any_event_on(
    make_api: MakeApi, tmp_path: Path, kind: str
) -> None:
    path, more = KINDS[kind]
    calm = list(map(without_times, await undisturbed(await make_api(), path, more)))
    assert [number_of(event) for event in calm] == list(range(len(calm)))
    assert any(end in calm[-1] for end in ENDS)
    killed_after, length = 0, 1
    while killed_after <= length:
        folder = tmp_path / str(killed_after)
        folder.mkdir()
        first = await make_api(run_dir=folder)
        response, outputs = await begin(first, path, **more)
        script = script_of(outputs)
        length = len(script)
        for index, output in script[:killed_after]:
            outputs[index].push(output)
        await settle()
        # The first process is not asked again: it might as well be dead.
        second = await make_api(run_dir=folder, epoch=2)
        adopted = {one.rid: output for one, output in second.engine.adopted}
        seen = calm[killed_after % len(calm)]
        answer = await read_on(second, response, seen)
        for index, output in script[killed_after:]:
            adopted[outputs[index].rid].push(output)
        assert list(map(without_times, await events_of(answer))) == calm[number_of(seen) + 1 :]
        for number in range(0, len(calm), 3):
            answer = await read_on(second, response, calm[number])
            assert list(map(without_times, await events_of(answer))) == calm[number + 1 :]
        response.close()
        killed_after += 2
    assert not await events_of(await read_on(second, response, calm[-1]))
    assert list(map(without_times, await events_of(await read_on(second, response)))) == calm


async def test_the_successor_states_what_was_delivered(make_api: MakeApi, tmp_path: Path) -> None:
    first = await make_api(run_dir=tmp_path)
    response, [output] = await begin(first, CHAT, n=2, timeout=50.0, seed=5)
    script = script_of([output])
    for _, one in script[:5]:
        output.push(one)
    await settle()
    second = await make_api(run_dir=tmp_path, epoch=7)
    response.close()
    [(adopted, _)] = second.engine.adopted
    assert adopted.rid == output.rid and adopted.epoch == 7
    assert adopted.encoded.ids == output.encoded.ids and adopted.request.params.seed == 5
    assert [len(choice.ids) for choice in adopted.choices] == [4, 2]
    assert [choice.text_length for choice in adopted.choices] == [3, 1]
    assert 0 <= second.service.clock.now() - adopted.start_s < 30 and adopted.request.deadline_s == 50
    assert second.service.admission.num_admitted == 2


async def test_a_response_that_is_over_is_read_without_the_engine(make_api: MakeApi, tmp_path: Path) -> None:
    first = await make_api(run_dir=tmp_path)
    response, [output] = await begin(first, TEXT)
    for _, one in script_of([output]):
        output.push(one)
    calm = await events_of(response)
    second = await make_api(run_dir=tmp_path, epoch=2)
    assert not second.engine.adopted
    assert await events_of(await read_on(second, response)) == calm


async def test_an_error_is_part_of_the_response(make_api: MakeApi, tmp_path: Path) -> None:
    first = await make_api(run_dir=tmp_path)
    response, [output] = await begin(first, CHAT)
    output.text("Hello")
    output.fail(RequestError(408, "deadline_exceeded", "too late"))
    events = await events_of(response)
    assert "deadline_exceeded" in events[-2] and "[DONE]" in events[-1] and len(events) == 4
    second = await make_api(run_dir=tmp_path, epoch=2)
    assert not second.engine.adopted
    for api in (first, second):
        assert await events_of(await read_on(api, response, events[1])) == events[2:]


async def test_a_response_is_bound_to_its_key(make_api: MakeApi, tmp_path: Path) -> None:
    keys = {key: {"Authorization": f"Bearer {key}"} for key in ("one", "two")}
    for epoch in (1, 2):
        api = await make_api(run_dir=tmp_path, api_key=("one", "two"), epoch=epoch)
        if epoch == 1:
            api.engine.script = stay_silent
            response = await api.http.post(
                api.url + CHAT, json=body_of(CHAT), headers={"X-Quartet-Resume": "0.4"} | keys["one"]
            )
            response.close()
            await left(api)
        assert await status_of(api, response) == 401
        assert await status_of(api, response, **keys["two"]) == 404
        answer = await read_on(api, response, **keys["one"])
        assert answer.status == 200
        answer.close()
    await asyncio.sleep(0.6)
    assert await status_of(api, response, **keys["one"]) == 410
    assert await status_of(api, response, **keys["two"]) == 404


async def test_a_lost_connection_costs_nothing_and_only_one_reads(api: Api) -> None:
    response, [output] = await begin(api, CHAT)
    output.text("one")
    seen = await events_of(response, 2)
    assert await status_of(api, response, seen[-1]) == 409
    response.close()
    await left(api)
    output.text(" two")
    assert not output.aborted.is_set()
    answer = await read_on(api, response, seen[-1])
    assert answer.status == 200
    output.text(" three")
    output.finish_all()
    rest = await events_of(answer)
    assert [number_of(event) for event in rest] == [2, 3, 4, 5]
    assert "two" in rest[0] and "three" in rest[1] and "[DONE]" in rest[3]
    _, metrics, _ = await api.get("/metrics")
    assert 'quartet_streams_resumed_total{model_name="toy",process="api-0"} 1.0' in metrics


async def test_an_unread_response_is_aborted_when_its_window_has_passed(api: Api) -> None:
    api.engine.script = stay_silent
    response = await api.http.post(api.url + CHAT, json=body_of(CHAT), headers={"X-Quartet-Resume": "0.2"})
    [output] = api.engine.outputs
    assert api.service.admission.num_admitted == 1
    response.close()
    await settle_until(output.aborted.is_set)
    assert await status_of(api, response) == 410
    assert api.service.admission.num_admitted == 0
    assert not api.service.recordings.metrics().gauges["journal_bytes"]


async def test_a_response_that_ends_unread_is_kept_for_its_window(api: Api) -> None:
    api.engine.script = stay_silent
    response = await api.http.post(api.url + CHAT, json=body_of(CHAT), headers={"X-Quartet-Resume": "0.8"})
    [output] = api.engine.outputs
    response.close()
    await asyncio.sleep(0.5)
    output.finish_all()
    await asyncio.sleep(0.5)
    answer = await read_on(api, response)
    assert answer.status == 200 and "[DONE]" in (await events_of(answer))[-1]


async def test_other_streams_have_no_ids_and_end_with_their_connection(api: Api) -> None:
    response = await api.http.post(api.url + CHAT, json=body_of(CHAT))
    assert "Content-Location" not in response.headers and "X-Quartet-Resume" not in response.headers
    assert all(event.startswith("data: ") for event in await events_of(response))
    assert not api.service.recordings._kept
    whole = await api.http.post(api.url + CHAT, json=body_of(CHAT, stream=False), headers=RESUME)
    assert whole.status == 200 and "Content-Location" not in whole.headers
    whole.close()


@pytest.mark.parametrize("window", ["soon", "0", "-1", "301", "nan", "inf"])
async def test_a_wrong_window_is_refused(api: Api, window: str) -> None:
    status, body, _ = await api.post(CHAT, body_of(CHAT), headers={"X-Quartet-Resume": window})
    assert status == 400 and "X-Quartet-Resume" in body["error"]["message"]


async def test_wrong_names_and_events_are_refused(api: Api) -> None:
    response, [output] = await begin(api, CHAT)
    output.finish_all()
    await events_of(response)
    stream = response.headers["Content-Location"].rpartition("/")[2]
    for event in ("x", "-1", f"{'0' * 32}x:1", f"{'1' * 32}:1", "1:1:1", "9" * 40):
        assert await status_of(api, response, event) == 400, event
    for name in ("x", "f" * 32, stream[:-1], f"{stream}0", stream.upper() + "é", f"chat-{stream}"):
        assert (await api.get(f"/v1/streams/{name}"))[0] == 404, name
    status, text, _ = await api.get(f"/v1/streams/chatcmpl-{stream}?starting_after=1")
    response.close()
    assert status == 200 and text.startswith(f"id: {stream}:2\n")
    assert (await api.post(f"/v1/streams/{stream}"))[0] == 405
    async with api.http.head(f"{api.url}/v1/streams/{stream}") as head:
        assert head.status == 405


async def test_a_refusal_before_the_first_event_is_not_recorded(api: Api) -> None:
    api.engine.refusal = RequestError(503, "queue_full", "full")
    status, _, _ = await api.post(CHAT, body_of(CHAT), headers=RESUME)
    assert status == 503 and not api.service.recordings._kept and not api.service.admission.num_admitted


async def test_the_openai_client_reads_events_with_ids(api: Api, client: openai.AsyncOpenAI) -> None:
    chunks = await client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "hi"}], stream=True, extra_headers=RESUME
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    assert text == "".join(WORDS)
    assert len(list(api.service.recordings)) == 1
