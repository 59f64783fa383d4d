"""What a decode step costs in the scheduler core, without processes: 256 running requests, results at once.

    python -m benchmarks.simulation.scheduler_step [running] [waiting] [prompt tokens] [policy] [events]

Prints microseconds of CPU per decode step and per token, including encoding and decoding of frames, and the 99th
percentile of a step. Prompts come in groups that share all but their last 128 tokens. With `events` KV-cache events are
written after each step, as their publisher does, and the time of a page in them is printed, too.
"""

import sys
import time
from array import array
from collections import deque

import msgspec

from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import (
    SamplingParams,
    SchedulerInbound,
    Step,
    StepResult,
    StepTimes,
    Submit,
    pack_ids,
    unpack_ids,
)
from quartet.wire.ids import Epoch, Rid, Role
from scheduler_proc.core.events import WorkerUp
from scheduler_proc.core.page_log import PagesStored
from scheduler_proc.core.scheduler import Scheduler
from scheduler_proc.kv_events import EventWriter

STEPS = 400
OWN_TOKENS = 128
GROUPS = 8
PAGE_SIZE = 16
WORKER_EPOCH = Epoch(1)


def make_scheduler(
    config: SchedulerConfig, requests: int, prompt_tokens: int, pages: int
) -> tuple[Scheduler, deque[Step]]:
    """Return a scheduler with so many requests submitted, and its first steps."""
    scheduler = Scheduler(config, PAGE_SIZE, 1 << 20, (2,))
    sent = scheduler.handle(WorkerUp(WORKER_EPOCH, pages, config.max_running_requests, True), 0.0)
    for number in range(requests):
        shared = max(0, prompt_tokens - OWN_TOKENS)
        own = [number + 100] * (prompt_tokens - shared)
        prompt = array("i", [number % GROUPS + 3] * shared + own).tobytes()
        params = SamplingParams(max_new_tokens=STEPS + 8, ignore_eos=True)
        submit = Submit(Rid(number.to_bytes(16, "big")), 0, 0, "api-0", "detok-0", prompt, b"", params)
        sent += scheduler.handle(submit, 0.0)
    return scheduler, deque(frame for _, frame in sent if isinstance(frame, Step))


def result_of(step: Step, slots: dict[int, int]) -> StepResult:
    """Return what a worker answers; `slots` maps its slots to their generations and is updated."""
    for slot in unpack_ids(step.release):
        del slots[slot]
    last = [chunk.slot for chunk in step.chunks]
    rows = [*last, *(slot for slot in slots if step.decode)]
    slots |= {enter.slot: enter.generation for enter in step.enter}
    return StepResult(
        WORKER_EPOCH, step.step, pack_ids(rows), pack_ids([slots[row] for row in rows]), pack_ids([7] * len(rows)),
        [], [], StepTimes(0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip


def measure(scheduler: Scheduler, steps: deque[Step], events: EventWriter | None) -> tuple[list[float], int]:
    """Return the CPU seconds of each decode step, and the tokens of all of them."""
    encoder, decoder = Encoder(Source(Role.SCHEDULER, 0, Epoch(1)), 1), Decoder(SchedulerInbound, 1)
    worker = Encoder(Source(Role.WORKER, 0, WORKER_EPOCH), 1)
    slots: dict[int, int] = {}
    tokens, durations = 0, list[float]()
    while len(durations) < STEPS:
        step = steps.popleft()
        result = result_of(step, slots)
        data = worker.encode(result)
        begin = time.process_time()
        _, frame = decoder.decode(data)
        sent = scheduler.handle(frame, len(durations) * 0.01)
        for _, out in sent:
            encoder.encode(out)
        if events is not None:
            deque(events.messages(scheduler.kv.take_page_changes(), 0.0))
        elapsed = time.process_time() - begin
        steps += [out for _, out in sent if isinstance(out, Step)]
        if step.decode and not step.chunks:
            tokens += len(unpack_ids(result.slots))
            durations.append(elapsed)
    return durations, tokens


def us_per_page(pages: int = 4096) -> float:
    """Return the CPU microseconds in which a page of a long prompt is hashed and written."""
    change = PagesStored(0, list(range(1, pages + 1)), array("i", range(pages * PAGE_SIZE)).tobytes(), ())
    writer = EventWriter(PAGE_SIZE, "map")
    begin = time.process_time()
    for _ in writer.messages([change], 0.0):
        pass
    return round((time.process_time() - begin) / pages * 1e6, 3)


def main(argv: list[str]) -> int:
    """Run and print."""
    running = int((argv or ["256"])[0])
    waiting = int((argv[1:] or ["0"])[0])
    prompt_tokens = int((argv[2:] or ["64"])[0])
    config = SchedulerConfig(
        max_running_requests=running,
        chunked_prefill_size=-1,
        max_prefill_tokens=1 << 20,
        schedule_policy=(argv[3:] or ["fcfs"])[0],
    )
    pages = running * (prompt_tokens + STEPS + 64) // PAGE_SIZE
    scheduler, steps = make_scheduler(config, running + waiting, prompt_tokens, pages)
    events, per_page = None, {}
    if "events" in argv[4:]:
        events, per_page = EventWriter(PAGE_SIZE, "map"), {"us_per_page_of_events": us_per_page()}
        scheduler.kv.keep_log(1 << 20)
    durations, tokens = measure(scheduler, steps, events)
    result = {
        "running": running,
        "waiting": waiting,
        "us_per_step": round(sum(durations) / STEPS * 1e6, 1),
        "us_per_token": round(sum(durations) / tokens * 1e6, 3),
        "p99_step_us": round(sorted(durations)[int(0.99 * STEPS)] * 1e6, 1),
        "worst_step_us": round(max(durations) * 1e6, 1),
        **per_page,
    }
    print(msgspec.json.encode(result).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
