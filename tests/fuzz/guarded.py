"""Runs cases in forked children under bounds of processor time and memory, so that a case that hangs or explodes is a
finding and not the end of the run. The bounds are of processor time, so that a busy machine makes no finding."""

import collections
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

CLOCK_TICK_S = 0.01
POLL_S = 0.2


class Finding(NamedTuple):
    """A case that did not end as it should, and in which way."""

    case: int
    what: str


class _Child:
    def __init__(self, run: Callable[[int], str], memory_bytes: int) -> None:
        context = multiprocessing.get_context("fork")
        self.link, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, run, memory_bytes), daemon=True)
        self.process.start()
        far.close()
        self.case = -1
        self.started_s = 0.0

    def start(self, case: int) -> None:
        self.case, self.started_s = case, self.used_s()
        self.link.send(case)

    def used_s(self) -> float:
        """Return the processor time of the child so far."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) * CLOCK_TICK_S

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.link.close()


def run_guarded(
    run: Callable[[int], str],
    cases: Iterator[int],
    limit_s: float = 2.0,
    memory_bytes: int = 1 << 30,
    processes: int = 2,
) -> tuple[int, list[Finding]]:
    """Call `run` on each case in a child; it returns what is wrong, or nothing.

    Returns how many cases were run and the findings: what `run` has returned, and cases that took more than `limit_s`
    of processor time, more memory than `memory_bytes` above what the parent has, or ended their process.
    """
    findings: list[Finding] = []
    count = 0
    children = [_Child(run, memory_bytes) for _ in range(processes)]
    idle = list(children)
    while True:
        while idle and (case := next(cases, None)) is not None:
            idle.pop().start(case)
            count += 1
        busy = [child for child in children if child not in idle]
        if not busy:
            break
        ready = wait([child.link for child in busy], POLL_S)
        for child in busy:
            what = _answer(child, child.link in ready, limit_s)
            if what is None:
                continue
            if what:
                findings.append(Finding(child.case, what))
            if not child.process.is_alive() or what.startswith(("takes", "ended")):
                child.end()
                children.remove(child)
                child = _Child(run, memory_bytes)
                children.append(child)
            idle.append(child)
    for child in children:
        child.end()
    return count, findings


def _answer(child: _Child, is_ready: bool, limit_s: float) -> str | None:
    """Return what became of the child's case, nothing being well; None while it runs."""
    if is_ready:
        try:
            return str(child.link.recv())
        except EOFError:
            child.process.join()
            return f"ended the process ({child.process.exitcode})"
    used_s = child.used_s() - child.started_s
    return f"takes more than {limit_s:g} s" if used_s > limit_s else None


def _serve(link: "Connection[str, int]", run: Callable[[int], str], memory_bytes: int) -> None:
    """Run cases until the parent is gone. Runs in the child."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, resource.RLIM_INFINITY))
    while True:
        link.send(run(link.recv()))


def until(limit_s: float, start: int = 0) -> Iterator[int]:
    """Yield numbers from `start` on for that many seconds."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        yield start
        start += 1


def print_kinds(findings: list[Finding]) -> int:
    """Print each kind of finding with its count and a case to run again, the commonest first; returns how many."""
    kinds = collections.Counter(finding.what for finding in findings)
    for what, times in kinds.most_common():
        example = next(finding.case for finding in findings if finding.what == what)
        print(f"{times:5} {what} (case {example})")
    return len(kinds)
