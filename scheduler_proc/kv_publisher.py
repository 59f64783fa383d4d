"""Publishes KV-cache events over ZeroMQ: a PUB socket, and a ROUTER socket that sends again what was missed.

A message has three frames: topic, sequence number (8 bytes, big-endian, from 0 in each process) and payload. Consumers
take a number that falls for a restart. Nothing here waits for a consumer: what a slow one does not read is dropped for
it, and it sees the gap.

A replay request is a sequence number; the answer is every message from there on that is still kept, then one whose
number is -1 and whose topic and payload are empty.
"""

import asyncio
import collections
import itertools
import logging
from collections.abc import Callable, Iterable

import zmq
import zmq.asyncio

from quartet.wire.errors import ConfigError
from quartet.wire.kv_events import KvEventsConfig, is_bound
from scheduler_proc.core.page_log import PageChange
from scheduler_proc.kv_events import EventWriter

log = logging.getLogger(__name__)

END = (-1).to_bytes(8, "big", signed=True)
BURST = 64
"""Messages of a replay that are sent before the scheduler gets its turn."""
BIND_RETRY_S = 1.0

Message = tuple[int, bytes]


class KvPublisher:
    """The sockets and the messages that are kept.

    Args:
        config: with the endpoints.
        page_size: tokens of a page.
        wall_time: returns the time of day in seconds.
    """

    def __init__(self, config: KvEventsConfig, page_size: int, wall_time: Callable[[], float]) -> None:
        self._config = config
        self._writer = EventWriter(page_size, config.encoding)
        self._wall_time = wall_time
        self._topic = config.topic.encode()
        self._sequence = itertools.count()
        self._kept: collections.deque[Message] = collections.deque(maxlen=config.buffer_steps)
        self._context = zmq.asyncio.Context(io_threads=1)
        self._events = zmq.Socket(self._context, zmq.PUB)
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.setsockopt(zmq.SNDHWM, config.hwm)
        self._replays = self._context.socket(zmq.ROUTER)
        self._replays.setsockopt(zmq.LINGER, 0)
        # A whole replay fits, with its end; a consumer that reads none of it costs no more.
        self._replays.setsockopt(zmq.SNDHWM, config.buffer_steps + 1)

    def open(self) -> None:
        """Bind, or connect to a subscriber; once that is done it has no effect. Raises ConfigError if it fails."""
        config = self._config
        try:
            if not self._events.last_endpoint and is_bound(config.endpoint):
                self._events.bind(config.endpoint)
            elif not self._events.last_endpoint:
                self._events.connect(config.endpoint)
            if config.replay_endpoint is not None and not self._replays.last_endpoint:
                self._replays.bind(config.replay_endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"--kv-events-config: {' or '.join(config.endpoints)}: {error.strerror}") from error

    async def serve(self) -> None:
        """Answer requests for a replay until cancelled; others are ignored.

        Where another program has taken an address in the meantime, requests are served without events until it is free.
        """
        while True:
            try:
                self.open()
                break
            except ConfigError as error:
                log.error("no KV-cache events yet: %s", error)
            await asyncio.sleep(BIND_RETRY_S)
        while True:
            client, *request = await self._replays.recv_multipart()
            if len(request) != 2 or request[0] or len(request[1]) != len(END):
                log.debug("a replay request of %d frames is ignored", len(request))
                continue
            await self._replay(client, int.from_bytes(request[1], "big"))

    def publish(self, changes: Iterable[PageChange]) -> None:
        """Send the changes, and keep them for replays."""
        for payload in self._writer.messages(changes, self._wall_time()):
            sequence = next(self._sequence)
            self._kept.append((sequence, payload))
            self._events.send_multipart((self._topic, _packed(sequence), payload), zmq.NOBLOCK)

    async def _replay(self, client: bytes, first: int) -> None:
        wanted = [message for message in self._kept if message[0] >= first]
        for number, (sequence, payload) in enumerate(wanted, 1):
            await self._replays.send_multipart((client, b"", self._topic, _packed(sequence), payload))
            if number % BURST == 0:
                await asyncio.sleep(0)
        await self._replays.send_multipart((client, b"", b"", END, b""))

    def close(self) -> None:
        """Close the sockets; what is not sent is dropped."""
        self._events.close()
        self._replays.close()
        self._context.term()


def _packed(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")
