"""When a process counts as unresponsive or hung. It was started at 100 s."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from quartet.supervisor.liveness import (
    BUSY_CPU_S,
    OBSERVED_AFTER_S,
    START_TIMEOUT_S,
    STARVED_FACTOR,
    UNRESPONSIVE_S,
    Liveness,
    Observation,
    observe,
)
from quartet.wire.frames import Heartbeat

HANG_S = 2.0
TICK_S = 0.1
BLOCKED = Observation(is_stopped=False, is_waiting=False, main_cpu_s=7.0, cpu_s=9.0)
STOPPED = BLOCKED._replace(is_stopped=True)
STARVED = BLOCKED._replace(is_waiting=True)


def beat(progress: int, deadline_s: float = 0.0, phase: str = "serving") -> Heartbeat:
    return Heartbeat(phase, progress, deadline_s)


@pytest.fixture
def liveness() -> Liveness:
    return Liveness(100.0, HANG_S)


def silence(liveness: Liveness, seen: Callable[[float], Observation], is_ready: bool = True) -> tuple[float, str]:
    """Be silent after a heartbeat at 110 s; returns for how long, and why the process counts as hung."""
    liveness.on_heartbeat(beat(0), 110.0)
    for ticks in range(1, 1000):
        silent_s = ticks * TICK_S
        now = 110.0 + silent_s
        reason = liveness.hang(now, is_ready, seen(silent_s) if liveness.wants_observation(now) else None)
        if reason is not None:
            return silent_s, reason
    raise AssertionError("it was never found")


def busy(share: float) -> Callable[[float], Observation]:
    """Return what /proc shows of a main thread with that share of a CPU."""
    return lambda silent_s: STARVED._replace(main_cpu_s=7 + share * silent_s, cpu_s=9 + share * silent_s)


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_stopped_process_is_hung_after_the_timeout(liveness: Liveness, is_ready: bool) -> None:
    silent_s, reason = silence(liveness, lambda _: STOPPED, is_ready)
    assert silent_s == pytest.approx(HANG_S + TICK_S) and reason == "stopped, no heartbeat for 2 s"


def test_a_busy_main_loop_is_hung_after_the_timeout(liveness: Liveness) -> None:
    silent_s, reason = silence(liveness, busy(1.0))
    assert silent_s == pytest.approx(HANG_S + TICK_S) and reason == "busy, no heartbeat for 2 s"


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_busy_main_loop_with_a_share_of_the_cpu_is_found_by_its_cpu_time(liveness: Liveness, share: float) -> None:
    silent_s, _ = silence(liveness, busy(share))
    assert silent_s == pytest.approx(max(HANG_S, OBSERVED_AFTER_S + BUSY_CPU_S / share), abs=3 * TICK_S)


def test_a_blocked_main_loop_is_hung_after_the_timeout(liveness: Liveness) -> None:
    silent_s, reason = silence(liveness, lambda _: BLOCKED._replace())
    assert silent_s == pytest.approx(HANG_S + TICK_S) and reason == "blocked, no heartbeat for 2 s"


@pytest.mark.parametrize(
    "seen",
    [
        lambda _: STARVED,
        busy(0.02),
        lambda silent_s: BLOCKED._replace(cpu_s=9 + silent_s),
    ],
    ids=["no CPU", "hardly any CPU", "another thread has the interpreter"],
)
def test_a_process_that_is_short_of_cpu_has_longer(liveness: Liveness, seen: Callable[[float], Observation]) -> None:
    silent_s, reason = silence(liveness, seen)
    assert silent_s == pytest.approx(HANG_S * STARVED_FACTOR + TICK_S) and reason == "no heartbeat for 12 s"


def test_a_process_that_starts_may_be_silent_for_long(liveness: Liveness) -> None:
    silent_s, reason = silence(liveness, busy(1.0), is_ready=False)
    assert silent_s == pytest.approx(START_TIMEOUT_S + TICK_S) and reason == "silent for 60 s"


def test_a_silent_start_has_the_same_time(liveness: Liveness) -> None:
    assert liveness.hang(100.0 + START_TIMEOUT_S, False, BLOCKED) is None
    assert liveness.hang(100.1 + START_TIMEOUT_S, False, BLOCKED) == "silent for 60 s"


def test_cpu_time_of_an_earlier_silence_does_not_count(liveness: Liveness) -> None:
    for start_s, cpu_s in ((110.0, 7.0), (120.0, 50.0)):
        liveness.on_heartbeat(beat(0), start_s)
        for silent_s in (0.6, HANG_S + 0.1):
            assert liveness.hang(start_s + silent_s, True, STARVED._replace(main_cpu_s=cpu_s)) is None


def test_it_is_unresponsive_before_it_is_hung(liveness: Liveness) -> None:
    liveness.on_heartbeat(beat(0), 110.0)
    assert not liveness.is_unresponsive(110.0 + UNRESPONSIVE_S)
    assert liveness.is_unresponsive(110.1 + UNRESPONSIVE_S)
    liveness.on_heartbeat(beat(0), 111.5)
    assert not liveness.is_unresponsive(111.5)


def test_heartbeats_are_enough_where_no_deadline_is_declared(liveness: Liveness) -> None:
    for now in range(100, 1000):
        liveness.on_heartbeat(beat(7), float(now))
        assert liveness.hang(float(now), True) is None


def test_no_progress_within_the_declared_deadline_is_a_hang(liveness: Liveness) -> None:
    liveness.on_heartbeat(beat(7, 2.0, "loading"), 101.0)
    liveness.on_heartbeat(beat(7, 2.0, "loading"), 103.0)
    assert liveness.hang(103.0, False) is None
    liveness.on_heartbeat(beat(7, 2.0, "loading"), 103.1)
    assert liveness.hang(103.1, False) == "no progress in phase 'loading' for 2 s"


def test_progress_restarts_the_deadline(liveness: Liveness) -> None:
    for second in range(20):
        liveness.on_heartbeat(beat(second, 1.5), 100.0 + second)
        assert liveness.hang(101.0 + second, True, STARVED) is None


def test_the_deadline_is_the_last_one_declared(liveness: Liveness) -> None:
    liveness.on_heartbeat(beat(1, 2.0, "step"), 101.0)
    liveness.on_heartbeat(beat(2, 0.0, "idle"), 102.0)
    liveness.on_heartbeat(beat(2, 0.0, "idle"), 106.0)
    assert liveness.hang(106.0, True) is None


def test_grace_restarts_every_deadline(liveness: Liveness) -> None:
    liveness.on_heartbeat(beat(1, 3.0), 101.0)
    liveness.grant_grace(500.0)
    assert liveness.hang(500.0 + HANG_S, True, STOPPED) is None
    assert liveness.hang(500.1 + HANG_S, True, STOPPED) is not None
    liveness.on_heartbeat(beat(1, 3.0), 503.0)
    assert liveness.hang(503.0, True) is None
    liveness.on_heartbeat(beat(1, 3.0), 503.1)
    assert liveness.hang(503.1, True) == "no progress in phase 'serving' for 3 s"


def test_a_silent_process_may_have_made_progress(liveness: Liveness) -> None:
    liveness.on_heartbeat(beat(1, 3.0), 101.0)
    assert liveness.hang(105.0, True, STARVED) is None
    liveness.on_heartbeat(beat(2, 3.0), 105.1)
    assert liveness.hang(105.1, True) is None


# What /proc shows


def observed(program: str, until: Callable[[Observation], bool], number: signal.Signals | None = None) -> Observation:
    """Run a program and observe it until what is seen is as wanted."""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                if number is not None:
                    os.kill(process.pid, number)
                seen = observe(process.pid)
                assert seen is not None
                if until(seen):
                    return seen
                time.sleep(0.05)
            raise AssertionError(f"last seen: {seen}")
        finally:
            process.kill()


def test_a_stopped_process_is_seen_as_one() -> None:
    observed("import time; time.sleep(60)", lambda seen: seen.is_stopped, signal.SIGSTOP)


def test_cpu_time_of_the_main_thread_is_told_from_that_of_others() -> None:
    thread = (
        "import threading, hashlib; f = lambda: [hashlib.pbkdf2_hmac('sha1', b'', b'', 10**6) for _ in range(99)]\n"
    )
    seen = observed(
        thread + "t = threading.Thread(target=f, daemon=True); t.start(); t.join()",
        lambda seen: seen.cpu_s - seen.main_cpu_s > 0.3,
    )
    assert seen.main_cpu_s < 1.0
    observed("while True: pass", lambda seen: seen.main_cpu_s > 0.3)


def test_a_process_that_has_ended_is_not_seen() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert observe(process.pid) is None
