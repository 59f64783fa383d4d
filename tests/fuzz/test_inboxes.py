"""Bytes from strangers into every inbox of a real launch: dropped and counted, and streams stay exact."""

import asyncio
import os
import pickle
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
import zmq

from quartet.wire.codec import HEADER, MAX_FRAME_BYTES, VERSION, Encoder, Source
from quartet.wire.frames import SchedulerHello
from quartet.wire.ids import Epoch, Role
from tests.fuzz.frame_values import FrameMaker
from tests.fuzz.frames import SENDERS
from tests.fuzz.mutants import mutate_bytes
from tests.support.client import stream_completion
from tests.support.server import Server
from tests.support.wire_samples import BOOT, INBOXES, SAMPLES, inbox_of, sealed, tag

pytestmark = pytest.mark.e2e
BODY = {"model": "smollm2", "prompt": "Tell me a story.", "max_tokens": 250, "temperature": 0, "ignore_eos": True}
HOOK = """
import os, secrets, sys

def heard(event, arguments):
    if event == "pickle.find_class":
        os.close(os.open(os.environ["PICKLES_HEARD"], os.O_CREAT | os.O_WRONLY))

sys.addaudithook(heard)
draw = secrets.randbits
secrets.randbits = lambda bits: 7 if bits == 63 else draw(bits)
"""
"""Tells of pickles that are loaded, and has the launch choose the boot id of the samples."""
GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL"
"""The first half of ZeroMQ's greeting."""


class Bomb:
    """What a pickle of this calls when it is loaded."""

    def __reduce__(self) -> "tuple[object, tuple[str]]":
        return os.system, ("kill -9 $PPID",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    env = {"PYTHONPATH": str(folder), "PICKLES_HEARD": str(folder / "heard")}
    with Server("--simulated-worker", "--simulated-step-ms", "4", env=env) as running:
        yield running
    assert not (folder / "heard").exists(), "a pickle was loaded"


def inboxes(server: Server) -> dict[str, Path]:
    """Return the socket files of a launch by process."""
    return {path.name.removesuffix(".sock"): path for path in server.base.rglob("*.sock")}


def foreign_frame(draw: Random) -> bytes:
    """Return what is no frame of this launch."""
    good = Encoder(Source(Role.SCHEDULER, 0, Epoch(1)), BOOT + 1).encode(draw.choice(SAMPLES))
    return draw.choice(
        (
            good,
            mutate_bytes(good, draw),
            draw.randbytes(draw.randrange(2000)),
            pickle.dumps(Bomb()),
            good[: HEADER.size] + pickle.dumps(Bomb()),
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        )
    )


def spoiled_frames(name: str) -> dict[str, bytes]:
    """Return frames of this launch for an inbox with one fault each, by the reason for which they are dropped."""
    frame = next(sample for sample in SAMPLES if inbox_of(sample) is INBOXES[name.split("-")[0]])
    kind, body = tag(frame), msgspec.msgpack.encode(frame)
    longer = msgspec.msgpack.encode([*msgspec.to_builtins(msgspec.structs.astuple(frame)), 1, 2])
    return {
        "magic": sealed(body, kind, magic=b"HTTP"),
        "version": sealed(body, kind, version=VERSION + 1),
        "boot": sealed(body, kind, boot=BOOT + 1),
        "type": sealed(body, 250),
        "length": sealed(body, kind)[:-1],
        "crc": sealed(body, kind, crc=0),
        "role": sealed(body, kind, role=99),
        "short": sealed(body, kind)[:20],
        "body": sealed(longer, kind),
        "body, text": sealed(b"\x92" + bytes([kind]) + b"\xa2\xff\xfe", kind),
        "body, nested": sealed(b"\x91" * 1_000_000, kind),
        "body, long": sealed(b"\xdd\xff\xff\xff\xff", kind),
    }


def senseless_frames(name: str, draw: Random, count: int) -> Iterator[bytes]:
    """Yield well-typed frames for an inbox that name no request of a client."""
    role = next(role for role in Role if name == f"{role.label}-0")
    sender = Encoder(Source(SENDERS.get(role, (Role.API,))[0], 0, Epoch(1)), BOOT)
    maker = FrameMaker(draw, (1,), is_foreign=True)
    for _ in range(count):
        try:
            frame = maker.frame(INBOXES[role.label])
            if not isinstance(frame, SchedulerHello):
                yield sender.encode(frame)
        except (ValueError, OverflowError):
            continue


def send_frames(path: Path, count: int, draw: Random) -> None:
    """Send messages to an inbox as a ZeroMQ peer."""
    name = path.name.removesuffix(".sock")
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.setsockopt(zmq.LINGER, 2000)
    push.connect(f"ipc://{path}")
    for _ in range(count):
        push.send(foreign_frame(draw))
    for frame in (*spoiled_frames(name).values(), *senseless_frames(name, draw, count)):
        push.send(frame)
    push.send_multipart([foreign_frame(draw) for _ in range(50)])
    if name == "scheduler-0":
        # ZeroMQ drops it, and the connection that it came by.
        push.send(bytes(MAX_FRAME_BYTES + 1))
    push.close()
    context.term()


def send_raw(path: Path, draw: Random) -> None:
    """Connect to an inbox without speaking ZeroMQ."""
    beginnings = (b"", GREETING, GREETING[:5], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", draw.randbytes(3000), b"\0" * 64)
    held = []
    for beginning in beginnings:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
        peer.sendall(beginning)
        held.append(peer)
    for peer in held:
        peer.close()


def storm(server: Server, seed: int, frames: int) -> None:
    """Send bytes of strangers into every inbox."""
    draw = Random(seed)
    for path in inboxes(server).values():
        send_raw(path, draw)
        send_frames(path, frames, draw)
        send_raw(path, draw)


def dropped(server: Server) -> dict[str, set[str]]:
    """Return for which reasons each process has dropped frames."""
    _, text = server.get("/metrics")
    found: dict[str, set[str]] = {}
    for process, reason in re.findall(
        r'frames_dropped_total\{[^}]*process="([^"]+)"[^}]*reason="([^"]+)"[^}]*\}', str(text)
    ):
        found.setdefault(process, set()).add(reason)
    return found


async def test_streams_are_exact_and_what_is_dropped_is_counted(server: Server) -> None:
    calm = await stream_completion(server.url, BODY)
    attacker = threading.Thread(target=storm, args=(server, 5, 400))
    attacker.start()
    shaken = await asyncio.gather(*(stream_completion(server.url, BODY) for _ in range(8)))
    await asyncio.to_thread(attacker.join)
    assert calm.is_done and all(answer.text == calm.text and answer.is_done for answer in shaken)
    names = set(inboxes(server))
    assert names >= {"api-0", "tokenizer-0", "scheduler-0", "worker-0", "detok-0"}
    reasons = {"magic", "version", "boot", "type", "length", "crc", "role", "short", "body"}
    server.wait_until(lambda: all(dropped(server).get(name, set()) >= reasons for name in names))
    assert all(row["restarts"] == 0 for row in server.topology().values())
    assert (await stream_completion(server.url, BODY)).text == calm.text
