"""Frames of processes that have ended, and the end of an engine that has failed."""

import asyncio

import msgspec
import pytest
from engine_rig import Rig, delta, settle, table

from quartet.client.processes import REQUIRED_ROLES as ENGINE
from quartet.client.processes import Processes
from quartet.client.request import GenerateRequest
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import Failed, IdsPrompt, ProcessStatus, ProcessTable, pack_ids
from quartet.wire.ids import Epoch, Role
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


@pytest.mark.parametrize("state", ["unresponsive", "down", "starting"])
@pytest.mark.parametrize("role", [Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK])
def test_ready_means_every_process_that_requests_pass_through(role: Role, state: str) -> None:
    rows = [*table().processes, *(ProcessStatus(one, 1, 9, Epoch(1), "ready", "", 0) for one in ENGINE)]
    rows.append(ProcessStatus(Role.STANDBY, 0, 9, Epoch(1), "starting", "", 0))
    processes = Processes()
    processes.update(ProcessTable(rows, False))
    assert processes.is_accepting and processes.is_alive
    index = next(n for n, row in enumerate(rows) if row.role is role)
    rows[index] = msgspec.structs.replace(rows[index], state=state)
    processes.update(ProcessTable(rows, False))
    assert not processes.is_accepting and processes.is_alive, "the other one does not take its share"
