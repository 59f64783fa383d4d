"""A seeded nemesis against a real launch: random SIGKILLs and SIGSTOPs of one to four roles under many clients.

    python -m tests.fault.nemesis --seed 7 --seconds 600 --clients 100 [--standby]

Every answer is compared with that of a calm run before; afterwards nothing may be held that was not before, and the
restarts must be those that were injected. The seed is printed first; it gives the same requests and the same faults,
though not the same interleaving.
"""

import argparse
import asyncio
import collections
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field

import aiohttp

from tests.support.leaks import LeakOracle, held
from tests.support.server import Server
from tests.support.stress_client import Body, Outcome, ask, bodies, with_stop

ROLES = ("tokenizer-0", "scheduler-0", "worker-0", "detok-0")
FLAGS = ("--simulated-worker", "--simulated-step-ms", "4", "--restart-limit", "100000")
SAMPLE_S = 2.0
FIRST_SNAPSHOT_S = 1.5
LONG_PAUSE_S = 1.0


@dataclass
class Report:
    """What came of a run."""

    seed: int
    answered: int = 0
    refused: int = 0
    corrupted: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    injected: collections.Counter[str] = field(default_factory=collections.Counter)
    pauses: int = 0
    long_pauses: collections.Counter[str] = field(default_factory=collections.Counter)
    """Pauses that this process, itself not scheduled, ended so late that the paused one may count as hung."""
    restarts: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    rss_bytes: list[tuple[float, int, int]] = field(default_factory=list)
    """(seconds, api process, supervisor)."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost and nothing is left."""
        return not (self.corrupted or self.failed or self.leaks or self.unexplained)

    @property
    def unexplained(self) -> list[str]:
        """The processes whose restarts are not those that were injected."""
        return [
            name
            for name in {*self.restarts, *self.injected}
            if not 0 <= self.restarts.get(name, 0) - self.injected[name] <= self.long_pauses[name]
        ]

    def growth(self) -> tuple[float, float]:
        """Return MB a minute by which the api process and the supervisor grew in the second half of the run."""
        half = self.rss_bytes[len(self.rss_bytes) // 2 :]
        minutes = (half[-1][0] - half[0][0]) / 60 if len(half) > 1 else 0.0
        if not minutes:
            return 0.0, 0.0
        return tuple((half[-1][i] - half[0][i]) / 1e6 / minutes for i in (1, 2))  # type: ignore[return-value]

    def lines(self) -> list[str]:
        """Return the report as text."""
        api, supervisor = self.growth()
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.injected.items()))
        restarts = ", ".join(f"{name} {count}" for name, count in sorted(self.restarts.items()))
        return [
            f"seed {self.seed}: {'good' if self.is_good else 'BAD'}",
            f"requests: {self.answered} exact, {len(self.corrupted)} corrupted, {len(self.failed)} failed, "
            f"{self.refused} refused with 503 and asked again",
            f"deaths injected: {kills}; pauses: {self.pauses}",
            f"restarts: {restarts}; pauses of over {LONG_PAUSE_S:g} s: {self.long_pauses.total()}",
            f"growth in the second half: api process {api:+.2f} MB/min, supervisor {supervisor:+.2f} MB/min",
            *(f"corrupted: {one}" for one in self.corrupted[:10]),
            *(f"failed: {one}" for one in self.failed[:10]),
            *(f"leak: {one}" for one in self.leaks),
        ]


class Nemesis:
    """One run.

    Args:
        server: a launch at rest.
        clients: how many requests are open at once.
        tokens: the longest answer.
        pool: how many different requests there are.
        gap_s: the longest time between two strikes.
    """

    def __init__(
        self, server: Server, seed: int, clients: int, tokens: int = 160, gap_s: float = 3.0, pool: int = 48
    ) -> None:
        self._server = server
        self._roles = [*ROLES, *(["standby-0"] if "standby-0" in server.topology() else [])]
        self._chance = random.Random(seed)
        self._clients = clients
        self._tokens = tokens
        self._gap_s = gap_s
        self._pool = pool
        self._struck: set[int] = set()
        self.report = Report(seed)

    async def run(self, seconds: float) -> Report:
        """Learn the calm answers, shake for that long, let every client finish, and look for leaks."""
        await asyncio.to_thread(self._server.wait_until, self._server.is_complete, 60.0)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            pool = await self._calm(session)
            # A standby that has just started opens its sockets with its first Snapshot.
            await asyncio.sleep(FIRST_SNAPSHOT_S if "standby-0" in self._roles else 0.0)
            oracle = await asyncio.to_thread(LeakOracle, self._server)
            until = time.monotonic() + seconds
            clients = [asyncio.create_task(self._client(session, pool, i, until)) for i in range(self._clients)]
            watch = asyncio.create_task(self._sample())
            await self._strike_until(until)
            await asyncio.gather(*clients)
            watch.cancel()
        await asyncio.to_thread(self._server.wait_until, self._server.is_complete, 60.0)
        self.report.leaks = await asyncio.to_thread(oracle.leaks)
        self.report.restarts = await asyncio.to_thread(oracle.restarts_since)
        return self.report

    async def _calm(self, session: aiohttp.ClientSession) -> list[tuple[Body, Outcome]]:
        made = bodies(self._chance, self._pool, self._tokens)
        first = await asyncio.gather(*(ask(session, self._server.url, body) for body in made))
        made = [with_stop(body, outcome) for body, outcome in zip(made, first, strict=True)]
        calm = await asyncio.gather(*(ask(session, self._server.url, body) for body in made))
        for body, outcome in zip(made, calm, strict=True):
            assert outcome.error is None and not outcome.faults, (body, outcome)
        return list(zip(made, calm, strict=True))

    # Clients

    async def _client(
        self, session: aiohttp.ClientSession, pool: list[tuple[Body, Outcome]], number: int, until: float
    ) -> None:
        chance = random.Random(f"{self.report.seed} {number}")
        while time.monotonic() < until:
            body, calm = chance.choice(pool)
            try:
                outcome = await ask(session, self._server.url, body, calm)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.report.failed.append(f"{type(error).__name__}: {error}")
                continue
            await self._judge(body, outcome, calm)

    async def _judge(self, body: Body, outcome: Outcome, calm: Outcome) -> None:
        report = self.report
        if outcome.error is not None:
            if outcome.error.get("status") == 503 and not outcome.texts:
                report.refused += 1
                await asyncio.sleep(0.5)
            else:
                report.failed.append(f"{outcome.error}")
        elif outcome.faults or not outcome.same_as(calm):
            report.corrupted.append(f"{body.fields}: {outcome.faults[:3] or outcome} instead of {calm}")
        else:
            report.answered += 1

    # Faults

    async def _strike_until(self, until: float) -> None:
        conts: list[asyncio.Task[None]] = []
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(0.1, self._gap_s))
            count = self._chance.choices((1, 2, 3, 4), (12, 3, 1, 1))[0]
            names = self._chance.sample(self._roles, count)
            topology = await asyncio.to_thread(self._server.topology)
            for name in names:
                pid = int(topology[name]["pid"])
                kind = self._chance.choices(("kill", "stop", "pause"), (6, 2, 2))[0]
                if pid <= 0 or pid in self._struck:
                    continue
                if kind == "pause":
                    conts.append(asyncio.create_task(self._pause(name, pid, self._chance.uniform(0.05, 0.5))))
                elif _send(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP):
                    self._struck.add(pid)
                    self.report.injected[name] += 1
        await asyncio.gather(*conts)

    async def _pause(self, name: str, pid: int, seconds: float) -> None:
        start = time.monotonic()
        if _send(pid, signal.SIGSTOP):
            self.report.pauses += 1
            await asyncio.sleep(seconds)
            if pid not in self._struck:
                _send(pid, signal.SIGCONT)
                self.report.long_pauses[name] += time.monotonic() - start > LONG_PAUSE_S

    async def _sample(self) -> None:
        start = time.monotonic()
        while True:
            topology = await asyncio.to_thread(self._server.topology)
            sizes = (held(int(topology["api-0"]["pid"])).rss_bytes, held(self._server.process.pid).rss_bytes)
            self.report.rss_bytes.append((time.monotonic() - start, *sizes))
            await asyncio.sleep(SAMPLE_S)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def main() -> int:
    """Run it once; exit code 1 for a run that is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--standby", action="store_true")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with Server(*FLAGS, *(["--standby"] if arguments.standby else [])) as server:
        report = asyncio.run(Nemesis(server, arguments.seed, arguments.clients).run(arguments.seconds))
    # A process that was stopped is said to be; any other hang is one that was not injected.
    hangs = [line for line in server.output if "hangs" in line and "stopped" not in line]
    print("\n".join([*report.lines(), *(f"not injected: {line}" for line in hangs)]))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
