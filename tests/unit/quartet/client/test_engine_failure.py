"""Frames of processes that have ended, and the end of an engine that has failed."""

import asyncio

import msgspec
import pytest
from engine_rig import Rig, delta, settle, table

from quartet.client.request import GenerateRequest
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import Failed, IdsPrompt, pack_ids
from tests.support.wire_samples import PARAMS


@pytest.fixture
async def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("frame", ["failed", "finish"])
async def test_a_frame_of_a_dead_scheduler_is_refused(rig: Rig, frame: str) -> None:
    """Whatever attempt it names."""
    stream = await rig.started()
    rig.announce(table(scheduler=2))
    late = Failed(stream.rid, 0, 1, 500, "internal_error", "late") if frame == "failed" else None
    with pytest.raises(FrameError, match="stale"):
        rig.answer(late or delta(stream.rid, 0, [7], attempt=1, is_end=True), epoch=1)
    assert rig.engine.live_count == 1 and not rig.errors and not rig.outputs


async def test_a_failed_engine_ends_every_request(rig: Rig) -> None:
    """One is being tokenized, one waits to be accepted, one has output."""
    await rig.started()
    submitted = await rig.begin()
    request = GenerateRequest(prompt=IdsPrompt(pack_ids([5])), params=PARAMS)
    tokenizing = asyncio.create_task(rig.engine.generate(request))
    await settle()
    rig.announce(msgspec.structs.replace(table(is_draining=True), has_failed=True))
    for task in (submitted, tokenizing):
        with pytest.raises(RequestError, match="has failed") as caught:
            await task
        assert (caught.value.status, caught.value.code) == (503, "engine_failed")
    assert [error.code for error in rig.errors] == ["engine_failed"]
    assert rig.core.is_idle()


async def test_a_drain_fails_what_is_being_tokenized(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(GenerateRequest(prompt=IdsPrompt(pack_ids([5])), params=PARAMS)))
    await settle()
    await rig.engine.drain(0.0)
    with pytest.raises(RequestError, match="shutting down"):
        await task
