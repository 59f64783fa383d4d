"""Records the golden traces of the scheduler core (tests/golden/scheduler_traces).

    python -m tests.golden.record_scheduler_traces

Every scheduler that the rule tests, the state machine and the simulator's scenarios make is watched; a run is kept if a
fresh scheduler gives the same frames for its events, which leaves out tests that reach into the state between events.
Run it only when behaviour is meant to change, and say in the commit what changed.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.scenarios import make_scenario
from quartet.wire.config import POLICIES, SchedulerConfig
from scheduler_proc.core.events import Event
from scheduler_proc.core.scheduler import Scheduler
from tests.golden import scheduler_traces
from tests.golden.scheduler_traces import Reaction, Setup, Trace, encode_event, encode_sent

MACHINE_EXAMPLES = "500"
MOST_BYTES = 1 << 20
"""Of the frames of one trace."""


class Recorder:
    """Watches every scheduler made while it is installed."""

    def __init__(self) -> None:
        self.name = ""
        self._runs: list[tuple[str, Setup, list[Reaction], Scheduler]] = []
        self._init, self._handle = Scheduler.__init__, Scheduler.handle

    def install(self) -> None:
        """Begin to watch."""
        init, handle, runs = self._init, self._handle, self._runs

        def watched_init(
            scheduler: Scheduler, config: SchedulerConfig, page_size: int, context_length: int,
            eos_token_ids: tuple[int, ...], worker_name: str = "worker-0",
        ) -> None:  # fmt: skip
            init(scheduler, config, page_size, context_length, eos_token_ids, worker_name)
            fields = msgspec.to_builtins(config)
            setup = Setup(fields, page_size, context_length, list(eos_token_ids), worker_name)
            reactions: list[Reaction] = []
            runs.append((self.name, setup, reactions, scheduler))
            scheduler._reactions = reactions  # type: ignore[attr-defined]

        def watched_handle(scheduler: Scheduler, event: Event, now: float) -> list[Any]:
            # Before the call: tests may reuse what an event is made of.
            data, now = encode_event(event), float(now)
            sent = handle(scheduler, event, now)
            reaction = Reaction(now, data, encode_sent(sent), scheduler.next_deadline())
            scheduler._reactions.append(reaction)  # type: ignore[attr-defined]
            return sent

        Scheduler.__init__, Scheduler.handle = watched_init, watched_handle  # type: ignore[method-assign]

    def take(self) -> list[Trace]:
        """Stop to watch; return the distinct runs that a fresh scheduler repeats."""
        Scheduler.__init__, Scheduler.handle = self._init, self._handle  # type: ignore[method-assign]
        found: dict[bytes, Trace] = {}
        for name, setup, reactions, scheduler in self._runs:
            size = sum(len(body) for one in reactions for _, body in one.sent)
            if len(reactions) < 2 or size > MOST_BYTES:
                continue
            trace = Trace(name, setup, reactions, *scheduler.snapshot())
            key = msgspec.msgpack.encode([setup, [one.event for one in reactions]])
            try:
                is_repeated = scheduler_traces.replay(trace) == trace
            except Exception:
                is_repeated = False
            if is_repeated:
                found.setdefault(key, trace)
        print(f"{len(self._runs)} runs seen, {len(found)} kept", file=sys.stderr)
        return list(found.values())


def record(run: Callable[[Recorder], None]) -> list[Trace]:
    """Return the traces of what `run` does."""
    recorder = Recorder()
    recorder.install()
    run(recorder)
    return recorder.take()


def run_tests(*arguments: str) -> Callable[[Recorder], None]:
    """Return what runs tests in this process, each under its own name."""

    def run(recorder: Recorder) -> None:
        class Names:
            def pytest_runtest_setup(self, item: pytest.Item) -> None:
                recorder.name = item.nodeid

        if pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[Names()]):
            raise SystemExit("the tests fail")

    return run


def run_scenarios(recorder: Recorder) -> None:
    """Simulate each scenario, small, under the policies and the orders of steps."""
    # Whether steps are mixed is said by each of the settings below.
    engine = msgspec.structs.replace(preset("llama-8b-h100"), mixed_tokens=0)
    sizes = {
        "rag": {"requests": "48", "groups": "6", "prefix_tokens": "512", "own_tokens": "32", "output_tokens": "24"},
        "priority": {"requests": "40"},
        "overload": {"requests": "24"},
        "cold-start": {"requests": "40"},
        "long-prompts": {"requests": "2", "streams": "4", "stream_output_tokens": "64", "input_tokens": "20000"},
        "steady": {"requests": "40"},
    }
    settings: list[dict[str, Any]] = [{"schedule_policy": policy} for policy in (*POLICIES, "multi:priority,lpm,fcfs")]
    settings += [
        {"enable_priority_scheduling": True},
        {"enable_mixed_chunk": True},
        {"step_order": "decode_first"},
        {"step_order": "decode_first", "tbt_target_ms": 50.0},
        {"reservation": "blocks"},
        {"reservation": "full"},
        {"stream_interval": 4},
        {"disable_radix_cache": True},
    ]
    for name, given in sizes.items():
        scenario = make_scenario(name, engine, 0, given)
        for changes in settings:
            recorder.name = f"{name} {changes}"
            config = SchedulerConfig(**{"max_running_requests": scenario.max_running_requests, **changes})
            simulate(scenario.requests, scenario.engine, config)


def main() -> None:
    """Record everything."""
    os.environ["QUARTET_EXAMPLES"] = MACHINE_EXAMPLES
    sources = {
        "rules": run_tests("tests/unit/scheduler_proc"),
        "machine": run_tests("tests/property", "--hypothesis-seed=1"),
        "scenarios": run_scenarios,
    }
    for name, run in sources.items():
        traces = record(run)
        events = sum(len(trace.reactions) for trace in traces)
        size = scheduler_traces.write(name, traces)
        print(f"{name}: {len(traces)} traces, {events} events, {size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
