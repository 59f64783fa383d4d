"""Failpoints: what a text says, when a fault is due, and what it does to frames on real links."""

import collections
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from quartet.runtime import failpoints
from quartet.runtime.failpoints import Failpoints
from quartet.runtime.faulty_context import FaultyLink, FaultyOutboxes
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.frames import IdsPrompt, Query, SchedulerInbound, TextPrompt, pack_ids
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT

QUERY = Query(1, "api-0", "echo", "hello")


def fired(text: str, frames: list[Any], point: str = "recv.Query") -> list[int]:
    """Return the positions of the frames at which a fault of the scheduler happens."""
    points = Failpoints(text, "scheduler")
    return [at for at, frame in enumerate(frames) if points.reach(point, frame)]


def test_counts() -> None:
    frames = [QUERY] * 6
    assert fired("scheduler.recv.Query=drop", frames) == [0, 1, 2, 3, 4, 5]
    assert fired("scheduler.recv.Query=drop,nth=3", frames) == [2]
    assert fired("scheduler.recv.Query=drop,every=2", frames) == [1, 3, 5]
    assert fired("scheduler.recv.Query=drop,every=2,times=2", frames) == [1, 3]
    assert fired("scheduler.recv.Step=drop; worker.recv.Query=drop", frames) == []


def test_contents() -> None:
    frames = [TextPrompt("an apple"), TextPrompt("a pear"), IdsPrompt(pack_ids([7, 8, 9])), TextPrompt("a pear")]
    assert fired("scheduler.recv.Query=drop,has=pear", frames) == [1, 3]
    assert fired("scheduler.recv.Query=drop,has=pear,nth=2", frames) == [3]
    assert fired("scheduler.recv.Query=drop,ids=8.9", frames) == [2]
    assert fired("scheduler.recv.Query=drop,ids=8.8", frames) == []


def test_files(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = f"scheduler.recv.Query=drop,once={marker}"
    assert fired(text, [QUERY] * 3) == [0]
    assert fired(text, [QUERY] * 3) == []
    text = f"scheduler.recv.Query=drop,armed={marker}"
    assert fired(text, [QUERY] * 3) == [0]
    assert fired(text, [QUERY] * 3) == []


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_the_names(name: str) -> None:
    role, _, point = failpoints.NAMES[name].partition(".")
    assert Failpoints(f"{name}=delay:0", role).reach(point, QUERY) == "delay"


@pytest.mark.parametrize(
    "text",
    [
        "scheduler.recv.Query",
        "scheduler.recv.Query=melt",
        "scheduler.recv.Query=crash,sometimes=3",
        "scheduler.recv.Query=crash,nth=often",
        "scheduler.elsewhere=crash",
        "clerk.start=crash",
        "scheduler.start=drop",
        "scheduler.recv.Query=damage",
    ],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition(",")[0].split(".")[0]):
        Failpoints(text, "api")


@pytest.mark.parametrize(
    ("action", "code"), [("crash", -signal.SIGKILL), ("exit:0", 0), ("exit:137", 137), ("raise", 1)]
)
def test_ends(action: str, code: int) -> None:
    program = (
        f"from quartet.runtime.failpoints import Failpoints; Failpoints('api.start={action}', 'api').reach('start')"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20, check=False)
    assert finished.returncode == code


class Links:
    """A link with faults at each end of one way."""

    def __init__(self, folder: Path, text: str) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        points = Failpoints(text, "scheduler")
        encoder = Encoder(Source(Role.API, 0, Epoch(1)), BOOT)
        self.dropped: collections.Counter[str] = collections.Counter()
        decoder = Decoder[Any](SchedulerInbound, BOOT)
        self.inbox = FaultyLink(self.context, str(folder), "scheduler-0", decoder, encoder, self.dropped, points)
        self.outboxes = FaultyOutboxes(self.context, str(folder), encoder, points)

    def pass_on(self, count: int) -> list[int]:
        """Send that many frames; return the numbers of those received."""
        for number in range(count):
            self.outboxes.send("scheduler-0", Query(number, "api-0", "echo", ""))
        self.outboxes.send("scheduler-0", Query(count, "api-0", "end", ""))
        numbers: list[int] = []
        while not numbers or numbers[-1] != count:
            received = self.inbox.recv(5)
            if received is not None:
                numbers.append(received[1].number)
        return numbers[:-1]

    def close(self) -> None:
        self.inbox.close()
        self.outboxes.close()
        self.context.destroy(linger=0)


@pytest.fixture
def links(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Links]:
    links = Links(tmp_path, request.param)
    yield links
    links.close()


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ("scheduler.send.Query=drop,nth=2", [0, 2, 3]),
        ("scheduler.send.Query=duplicate,nth=2", [0, 1, 1, 2, 3]),
        ("scheduler.recv.Query=drop,nth=2", [0, 2, 3]),
        ("scheduler.recv.Query=duplicate,nth=2", [0, 1, 1, 2, 3]),
        ("scheduler.send.Query=damage,nth=2", [0, 2, 3]),
    ],
    indirect=["links"],
)
def test_faults_of_frames(links: Links, expected: list[int]) -> None:
    assert links.pass_on(4) == expected
    assert links.dropped["crc"] == (1 if "damage" in str(links.outboxes._points._points) else links.dropped["crc"])
