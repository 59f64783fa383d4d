"""Requests by a client's name of them: whose are found, and what an abort by name ends."""

import json
from typing import Any

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Failed, Query, QueryReply, Rejected, SamplingParams, Submit, pack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.scheduler import Scheduler
from tests.support.core_rig import CoreRig

RID = Rid(bytes.fromhex("00ff" * 8))


def ask(scheduler: Scheduler, what: str, argument: str, tenant: str | None = None) -> tuple[bytes, list[Any]]:
    """Return the reply to a query, and the other frames that it causes."""
    frames = [frame for _, frame in scheduler.handle(Query(1, "api-0", what, argument, tenant), 0.0)]
    (reply,) = [frame for frame in frames if isinstance(frame, QueryReply)]
    return reply.body, [frame for frame in frames if frame is not reply]


def test_a_request_has_two_names_and_one_tenant() -> None:
    for text in (
        RID.hex(),
        RID.hex().upper(),
        f"chatcmpl-{RID.hex()}",
        f"cmpl-{RID.hex()}",
        f"msg_{RID.hex()}",
        "mine",
        "",
    ):
        for tenant in (None, "blue"):
            assert RequestName(text, tenant).fits(RID, "blue", "mine"), text
        assert not RequestName(text, "red").fits(RID, "blue", "mine")
    for text in ("min", "MINE", "-mine", "00ff"):
        assert not RequestName(text, None).fits(RID, "blue", "mine")


def test_a_timeline_is_found_by_either_name_while_the_request_lives_and_after() -> None:
    rig = CoreRig()
    rid = rig.submit([1, 2, 3], 3, request_id="mine", tenant="blue")
    for _ in range(2):
        for name in (rid.hex(), "mine"):
            assert b'"request_id":"mine"' in ask(rig.scheduler, "timeline", name, "blue")[0]
            assert b"error" in ask(rig.scheduler, "timeline", name, "red")[0]
        rig.run()


def test_an_abort_by_name_ends_the_requests_of_its_tenant_alone() -> None:
    rig = CoreRig()
    for name in range(6):
        rig.submit([1, 2, 3 + name], 50, name=name, request_id=f"r{name // 2}", tenant="red" if name < 4 else "blue")
    rig.step()
    body, frames = ask(rig.scheduler, "abort", "r2", "red")
    assert body == b'{"aborted":0}' and not any(isinstance(frame, Failed) for frame in frames)
    body, frames = ask(rig.scheduler, "abort", "r1", "red")
    failed = [frame for frame in frames if isinstance(frame, Failed)]
    assert body == b'{"aborted":2}' and {(one.status, one.code) for one in failed} == {(499, "request_aborted")}
    assert ask(rig.scheduler, "abort", "", "red")[0] == b'{"aborted":2}'
    assert ask(rig.scheduler, "abort", "")[0] == b'{"aborted":2}'
    rig.scheduler.audit()
    assert rig.scheduler._table.is_empty


def test_an_abort_finds_requests_that_wait_for_the_first_worker() -> None:
    scheduler = Scheduler(SchedulerConfig(), 4, 64, (0,))
    for name in ("mine", "other"):
        rid = Rid(name.encode().ljust(16))
        submit = Submit(rid, 0, 0, "api-0", "detok-0", pack_ids([1]), b"", SamplingParams(), request_id=name)
        scheduler.handle(submit, 0.0)
    body, frames = ask(scheduler, "abort", "mine")
    (refusal,) = [frame for frame in frames if isinstance(frame, Rejected)]
    assert (body, refusal.code) == (b'{"aborted":1}', "request_aborted")


def test_live_requests_are_listed_for_their_tenant_with_what_is_so() -> None:
    rig = CoreRig()
    rid = rig.submit([1, 2, 3], 9, request_id="mine", tenant="red")
    rig.submit([4, 5], 9, name=1, tenant="blue", priority=7)
    rig.step()
    rig.step()
    everything = json.loads(ask(rig.scheduler, "requests", "")[0])
    assert everything["total"] == 2 and [row["priority"] for row in everything["rows"]] == [None, 7]
    own = json.loads(ask(rig.scheduler, "requests", "", "red")[0])
    (row,) = own["rows"]
    assert (row["rid"], row["request_id"], row["state"], row["choice"]) == (rid.hex(), "mine", "running", 0)
    assert (row["prompt_tokens"], row["max_new_tokens"], row["retractions"]) == (3, 9, 0)
    rig.run()
    assert json.loads(ask(rig.scheduler, "requests", "")[0]) == {"total": 0, "rows": []}


def test_of_many_live_requests_those_on_board_and_those_that_wait_are_listed() -> None:
    rig = CoreRig(pages=2000, slots=120)
    for name in range(300):
        rig.submit([1, 2, name], 20, name=name)
    rig.step()
    found = json.loads(ask(rig.scheduler, "requests", "")[0])
    states = [row["state"] for row in found["rows"]]
    assert found["total"] == 300 and len(states) == 200
    assert states == sorted(states, key=lambda state: state == "waiting") and states.count("waiting") >= 100
