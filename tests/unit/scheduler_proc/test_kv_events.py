"""KV-cache events: their bytes, what a consumer holds that has missed some, and the process that publishes them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from quartet.wire.config import Config, ResolvedModel, ServerConfig, WorkerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.frames import Query, pack_ids
from quartet.wire.ids import Role
from quartet.wire.kv_events import KvEventsConfig
from scheduler_proc.core.page_log import PageChange, PagesCleared, PagesRemoved, PagesStored
from scheduler_proc.kv_events import MOST_EVENTS, MOST_TOKENS, EventWriter
from scheduler_proc.kv_publisher import KvPublisher
from scheduler_proc.process import main
from tests.support.core_rig import CoreRig
from tests.support.fake_context import FakeContext, running
from tests.support.kv_follower import Follower, held_by
from tests.support.server import free_port

STORED: list[PageChange] = [
    PagesCleared(),
    PagesStored(0, [7, 3], pack_ids([1, 2, 3, 4]), ("", "")),
    PagesStored(3, [9], pack_ids([5, 6]), ()),
]


def decoded(writer: EventWriter, changes: Iterable[PageChange]) -> list[Any]:
    return [msgspec.msgpack.decode(payload) for payload in writer.messages(changes, 1.5)]


def test_a_map_has_vllms_fields() -> None:
    ((wall_time_s, events, rank),) = decoded(EventWriter(2, "map"), STORED)
    assert (wall_time_s, rank, events[0]) == (1.5, 0, {"type": "AllBlocksCleared"})
    first, second = events[1:]
    assert {**first, "block_hashes": len(first["block_hashes"])} == {
        "type": "BlockStored", "block_hashes": 2, "parent_block_hash": None, "token_ids": [1, 2, 3, 4],
        "block_size": 2, "lora_id": None, "medium": "GPU", "lora_name": None,
    }  # fmt: skip
    assert second["parent_block_hash"] == first["block_hashes"][1] and second["token_ids"] == [5, 6]


def test_an_array_has_the_same_fields_in_order() -> None:
    ((_, events, _),) = decoded(EventWriter(2, "array"), STORED)
    ((_, maps, _),) = decoded(EventWriter(2, "map"), STORED)
    assert events == [list(event.values()) for event in maps]


def test_a_prefix_has_one_hash_in_every_process_and_another_in_another_namespace() -> None:
    def first_hash(*namespace: str) -> int:
        ((_, (event,), _),) = decoded(EventWriter(1, "map"), [PagesStored(0, [1], pack_ids([5]), namespace)])
        return int(event["block_hashes"][0])

    assert first_hash("", "") == first_hash("", "") == first_hash() == 6513929341857392903
    assert len({first_hash(), first_hash("a", ""), first_hash("", "a"), first_hash("b", "")}) == 4


def test_the_salt_is_told_for_the_first_page() -> None:
    ((_, events, _),) = decoded(
        EventWriter(1, "map"),
        [PagesStored(0, [1, 2], pack_ids([5, 6]), ("tenant", "salt")), PagesStored(2, [3], pack_ids([7]), ())],
    )
    assert [event.get("extra_keys") for event in events] == [[["salt"], None], None]


def test_pages_that_leave_one_after_the_other_are_one_event() -> None:
    writer = EventWriter(2, "map")
    ((_, stored, _),) = decoded(writer, STORED)
    ((_, events, _),) = decoded(writer, [PagesRemoved([9]), PagesRemoved([7, 3])])
    hashes = [page for event in stored[1:] for page in event["block_hashes"]]
    assert events == [{"type": "BlockRemoved", "block_hashes": [hashes[2], *hashes[:2]], "medium": "GPU"}]


def test_messages_are_bounded() -> None:
    short: list[PageChange] = [PagesStored(0, [page], pack_ids([page]), ()) for page in range(1, 3 * MOST_EVENTS)]
    follower = Follower(1)
    for payload in EventWriter(1, "map").messages(short, 0.0):
        follower.take(payload)
    assert len(follower.prefixes) == len(short)
    long = PagesStored(0, list(range(1, 20_001)), pack_ids([49_000] * 20_000 * 32), ())
    messages = decoded(EventWriter(32, "map"), [long])
    assert [len(event["token_ids"]) for _, (event,), _ in messages] == [MOST_TOKENS, MOST_TOKENS, 115_712]
    assert messages[1][1][0]["parent_block_hash"] == messages[0][1][0]["block_hashes"][-1]


def test_a_log_that_is_full_becomes_what_the_tree_holds() -> None:
    rig = CoreRig(pages=16)
    rig.scheduler.kv.keep_log(1)
    for start in range(8):
        rig.submit([start] * 20, 4)
        rig.run()
    follower = Follower(rig.page_size)
    for payload in EventWriter(rig.page_size, "map").messages(rig.scheduler.kv.take_page_changes(), 0.0):
        follower.take(payload)
    assert follower.held() == held_by(rig.scheduler.kv.tree) and len(follower.prefixes) > 4


def test_a_flush_is_told_as_such() -> None:
    rig = CoreRig()
    rig.scheduler.kv.keep_log(1000)
    rig.submit([1] * 20, 4)
    rig.run()
    assert any(isinstance(change, PagesStored) for change in rig.scheduler.kv.take_page_changes())
    rig.send(Query(1, "api-0", "flush"))
    assert rig.scheduler.kv.take_page_changes() == [PagesCleared()]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_worker_that_is_lost_takes_all_pages_with_it(is_lost: bool) -> None:
    rig = CoreRig()
    rig.scheduler.kv.keep_log(1000)
    rig.submit([1] * 20, 4)
    rig.run()
    if is_lost:
        rig.worker_lost()
    rig.worker_up()
    assert rig.scheduler.kv.take_page_changes() == [PagesCleared()]


class Subscriber:
    """SUB and DEALER sockets as a router has them."""

    def __init__(self, config: KvEventsConfig) -> None:
        self.context = zmq.asyncio.Context()
        self.events, self.replays = self.context.socket(zmq.SUB), self.context.socket(zmq.DEALER)
        self.events.connect(config.endpoint)
        self.events.subscribe(config.topic.encode())
        self.replays.connect(config.replay_endpoint or "")
        self.topic = config.topic.encode()

    async def message(self) -> tuple[int, bytes]:
        topic, sequence, payload = await self.events.recv_multipart()
        assert topic == self.topic
        return int.from_bytes(sequence, "big", signed=True), payload

    async def replay(self, first: int) -> list[tuple[int, bytes]]:
        await self.replays.send_multipart((b"", first.to_bytes(8, "big")))
        found = []
        while True:
            empty, topic, sequence, payload = await self.replays.recv_multipart()
            number = int.from_bytes(sequence, "big", signed=True)
            if number == -1:
                assert (empty, topic, payload) == (b"", b"", b"")
                return found
            assert (empty, topic) == (b"", self.topic)
            found.append((number, payload))

    def close(self) -> None:
        self.context.destroy(linger=0)


@asynccontextmanager
async def publishing(**fields: Any) -> AsyncIterator[tuple[KvPublisher, Subscriber]]:
    ports = free_port(), free_port()
    config = KvEventsConfig(
        endpoint=f"tcp://127.0.0.1:{ports[0]}", replay_endpoint=f"tcp://127.0.0.1:{ports[1]}", topic="kv", **fields
    )
    publisher = KvPublisher(config, 4, lambda: 1.0)
    publisher.open()
    answering, subscriber = asyncio.create_task(publisher.serve()), Subscriber(config)
    try:
        async with asyncio.timeout(60):
            yield publisher, subscriber
    finally:
        answering.cancel()
        subscriber.close()
        publisher.close()


@pytest.mark.parametrize("encoding", ["map", "array"])
async def test_a_consumer_catches_up_from_any_message_that_it_has_missed(encoding: str) -> None:
    async with publishing(encoding=encoding) as (publisher, subscriber):
        rig = CoreRig(pages=12, slots=4)
        kv = rig.scheduler.kv
        kv.keep_log(1000)
        for start in range(80):
            rig.submit([start % 3 + 1] * 9 + [start % 31 + 1] * 8, 6)
            for _ in range(5):
                rig.step()
                publisher.publish(kv.take_page_changes())
        rig.run()
        publisher.publish(kv.take_page_changes())
        every = await subscriber.replay(0)
        assert [number for number, _ in every] == list(range(len(every))) and len(every) > 40
        for missed in range(0, len(every), 7):
            follower = Follower(rig.page_size)
            for _, payload in [*every[:missed], *await subscriber.replay(missed)]:
                follower.take(payload)
            assert follower.held() == held_by(kv.tree)


async def test_messages_are_live_numbered_and_kept_up_to_a_limit() -> None:
    async with publishing(buffer_steps=3) as (publisher, subscriber):
        first = None
        while first is None:
            # Until the subscription has arrived, nothing is sent to it.
            publisher.publish([PagesCleared()])
            try:
                first = await asyncio.wait_for(subscriber.message(), 0.05)
            except TimeoutError:
                continue
        for _ in range(4):
            publisher.publish([PagesCleared()])
        live = [first] + [await subscriber.message() for _ in range(4)]
        assert [number for number, _ in live] == list(range(first[0], first[0] + 5))
        assert await subscriber.replay(0) == live[2:]
        await subscriber.replays.send_multipart((b"", b"short"))
        assert await subscriber.replay(first[0] + 4) == live[4:]
        assert await subscriber.replay(first[0] + 5) == []


def context_of(port: int) -> FakeContext:
    config = json.dumps({"endpoint": f"tcp://127.0.0.1:{port}"})
    model = ResolvedModel("", "tiny", "Qwen3ForCausalLM", 512, 1024, (2,))
    server = ServerConfig(kv_events_config=config)
    return FakeContext(Role.SCHEDULER, Config(server=server, worker=WorkerConfig(), resolved=model))


async def test_an_address_in_use_ends_the_first_start_and_delays_events_of_a_later_one() -> None:
    port = free_port()
    taker = zmq.Context()
    socket = taker.socket(zmq.PUB)
    socket.bind(f"tcp://127.0.0.1:{port}")
    context = context_of(port)
    with pytest.raises(ConfigError, match=f"{port}.*in use"):
        async with running(main, context):
            pass
    context = context_of(port)
    context.is_recovery = True
    async with running(main, context):
        assert context.facts is not None
        socket.close(linger=0)
        taker.term()
        connect = partial(asyncio.open_connection, "127.0.0.1", port)
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await connect()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        writer.close()
