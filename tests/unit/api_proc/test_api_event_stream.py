"""EventStream against a pipe that is turned on and off by hand: order, holding back, and its own faults."""

import asyncio
from typing import Any

from fake_engine import MODEL, FakeEngine, finish

from api_proc.openai.chat_rendering import ChatRenderer
from api_proc.server.service import Service, Timeouts
from api_proc.server.sse import EventStream
from api_proc.server.usage import UsageCounter
from quartet.client.request import Output
from quartet.runtime.clock import ManualClock
from quartet.wire.config import Config
from quartet.wire.errors import RequestError


class FakePipe:
    """Implements what EventStream uses of a ResponsePipe."""

    def __init__(self) -> None:
        self.is_writable = True
        self.is_closed = False
        self.is_killed = False
        self.written: list[bytes] = []
        self.is_drained = asyncio.Event()

    def open(self) -> None: ...

    def write(self, payload: bytes) -> None:
        assert payload
        self.written.append(payload)

    async def drained(self, limit_s: float) -> bool:
        await self.is_drained.wait()
        return self.is_writable

    def kill(self) -> None:
        self.is_killed = True


class Rig:
    def __init__(self, choices: int = 1) -> None:
        self.clock = ManualClock(1.0)
        self.pipe: Any = FakePipe()
        self.aborts = 0
        service = Service(
            name="api-0",
            engine=FakeEngine(),
            config=Config(resolved=MODEL),
            clock=self.clock,
            draw_seed=lambda: 1,
            wall_time=lambda: 0.0,
            timeouts=Timeouts(),
        )
        usage = UsageCounter([3], choices, 1.0, self.clock, service.stats, lambda: None)
        self.stream = EventStream(
            self.pipe,
            ChatRenderer("id", 0, "toy", choices),
            usage,
            service,
            abort=self.abort,
            include_usage=False,
            continuous_usage=False,
        )

    def abort(self) -> None:
        self.aborts += 1

    def push(self, *texts: str, choice: int = 0) -> None:
        self.stream.on_outputs(0, [Output(choice, [1], text, None, None) for text in texts])

    @property
    def text(self) -> str:
        return b"".join(self.pipe.written).decode()


async def test_text_that_comes_before_the_held_text_is_sent_stays_behind_it() -> None:
    rig = Rig()
    rig.stream.begin()
    rig.push("first")
    rig.pipe.is_writable = False
    rig.push("second")
    rig.pipe.is_writable = True
    rig.push("third")
    assert "second" not in rig.text
    serving = asyncio.create_task(rig.stream.serve())
    await asyncio.sleep(0)
    rig.stream.on_outputs(0, [Output(0, [], "", None, finish())])
    await serving
    assert '"content":"secondthird"' in rig.text
    assert rig.text.index("first") < rig.text.index("secondthird") < rig.text.index('"stop"') < rig.text.index("DONE")


async def test_choices_that_finish_in_one_increment_all_get_their_end() -> None:
    rig = Rig(choices=2)
    rig.stream.begin()
    rig.stream.on_outputs(0, [Output(choice, [1], "x", None, finish(count=1)) for choice in range(2)])
    assert rig.text.count('"finish_reason":"stop"') == 2
    assert rig.text.index('"index":1,"delta":{},') < rig.text.index("[DONE]")
    await rig.stream.serve()


async def test_an_error_in_rendering_what_was_held_is_an_event_too() -> None:
    rig = Rig()
    rig.stream.begin()
    rig.pipe.is_writable = False
    rig.push("\ud800")
    rig.pipe.is_writable = True
    await rig.stream.serve()
    assert '"internal_error"' in rig.text
    assert rig.text.endswith("data: [DONE]\n\n")
    rig.push("more")
    assert "more" not in rig.text


async def test_a_closed_connection_is_noticed_at_the_next_output() -> None:
    for is_writable in (True, False):
        rig = Rig()
        rig.stream.begin()
        rig.pipe.is_closed = True
        rig.pipe.is_writable = is_writable
        rig.push("this is never sent")
        assert rig.aborts == 1
        assert "never sent" not in rig.text
        await rig.stream.serve()


async def test_a_reader_that_stalls_is_killed() -> None:
    rig = Rig()
    rig.stream.begin()
    rig.pipe.is_writable = False
    rig.pipe.is_drained.set()
    rig.push("held")
    await rig.stream.serve()
    assert rig.pipe.is_killed
    assert rig.aborts == 1


async def test_only_the_first_error_is_written() -> None:
    rig = Rig()
    rig.stream.begin()
    rig.stream.on_error(RequestError(500, "first", "one"))
    rig.stream.on_error(RequestError(500, "second", "two"))
    await rig.stream.serve()
    assert rig.text.count('"error"') == 1
    assert "first" in rig.text
