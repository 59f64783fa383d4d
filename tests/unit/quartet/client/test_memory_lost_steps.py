"""Steps and results that are lost between two processes that live: found by a query, computed again, output exact."""

import pytest

from quartet.runtime.memory import Fault
from quartet.wire.frames import SchedulerHello, Step, StepResult, WorkerHello
from tests.support.memory_engine import MemoryEngine
from tests.unit.quartet.client.test_memory_engine import PROMPTS, start

TAG_AT = 5
"""Where the codec's header has the tag of the frame."""


def lose(kind: type, number: int) -> Fault:
    """Return a fault that drops the frame of that kind with that number, counted from 0."""
    tag = kind.__struct_config__.tag  # type: ignore[attr-defined]
    seen = 0

    def fault(destination: str, data: bytes) -> list[bytes]:
        nonlocal seen
        if data[TAG_AT] != tag:
            return [data]
        seen += 1
        return [] if seen - 1 == number else [data]

    return fault


@pytest.mark.parametrize("number", [0, 1, 5, 17])
@pytest.mark.parametrize("kind", [Step, StepResult])
async def test_one_lost_frame_is_computed_again(kind: type, number: int) -> None:
    rig = MemoryEngine()
    rig.wire.fault = lose(kind, number)
    readers = await start(rig, PROMPTS, 30)
    for _ in range(4):
        rig.run()
        rig.second()
    for reader in readers:
        reader.check()
    assert rig.metric("worker_sessions_lost") == 1
    assert rig.scheduler.is_idle() and rig.engine.live_count == 0


@pytest.mark.parametrize("kind", [SchedulerHello, WorkerHello])
async def test_a_lost_hello_of_the_next_session_is_sent_again(kind: type) -> None:
    rig = MemoryEngine()
    readers = await start(rig, PROMPTS, 30)
    rig.wire.fault = lose(Step, 2)
    rig.run()
    rig.second()
    rig.wire.fault = lose(kind, 1)
    for _ in range(6):
        rig.second()
    for reader in readers:
        reader.check()
