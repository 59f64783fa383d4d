"""What the scheduler core costs a decode step, without processes: 256 running, results that come at once.

    python -m benchmarks.scheduler_step [running] [waiting]

Prints microseconds of CPU per decode step and per token, with frames encoded and decoded as on the wire.
"""

import sys
import time
from array import array

import msgspec

from quartet.codec import Decoder, Encoder, Source
from quartet.config import SchedulerConfig
from quartet.frames import SamplingParams, SchedulerInbound, Step, StepResult, StepTimes, Submit, pack_ids, unpack_ids
from quartet.ids import Epoch, Rid, Role
from scheduler_proc.core.events import WorkerUp
from scheduler_proc.core.scheduler import Scheduler

STEPS = 400
PROMPT_TOKENS = 64


def main(argv: list[str]) -> int:
    """Run and print."""
    running = int((argv or ["256"])[0])
    waiting = int((argv[1:] or ["0"])[0])
    config = SchedulerConfig(max_running_requests=running, chunked_prefill_size=-1, max_prefill_tokens=1 << 20)
    pages = running * (PROMPT_TOKENS + STEPS + 64) // 16
    scheduler = Scheduler(config, 16, 1 << 20, (2,))
    encoder, decoder = Encoder(Source(Role.SCHEDULER, 0, Epoch(1)), 1), Decoder(SchedulerInbound, 1)
    worker = Encoder(Source(Role.WORKER, 0, Epoch(1)), 1)
    steps: list[Step] = []
    sent = scheduler.handle(WorkerUp(Epoch(1), pages, running, True), 0.0)
    for number in range(running + waiting):
        prompt = array("i", [number + 3] * PROMPT_TOKENS).tobytes()
        params = SamplingParams(max_new_tokens=STEPS + 8, ignore_eos=True)
        submit = Submit(Rid(number.to_bytes(16, "big")), 0, 0, "api-0", "detok-0", prompt, b"", params)
        sent += scheduler.handle(submit, 0.0)
    steps += [frame for _, frame in sent if isinstance(frame, Step)]
    slots: dict[int, int] = {}
    spent, count, tokens, worst = 0.0, 0, 0, 0.0
    while count < STEPS:
        step = steps.pop(0)
        for slot in unpack_ids(step.release):
            del slots[slot]
        last = [chunk.slot for chunk in step.chunks]
        rows = [*last, *(slot for slot in slots if step.decode)]
        slots |= {enter.slot: enter.generation for enter in step.enter}
        result = StepResult(
            Epoch(1), step.step, pack_ids(rows), pack_ids([slots[row] for row in rows]), pack_ids([7] * len(rows)),
            [], [], StepTimes(0.0, 0.0, 0.0, 0.0),
        )  # fmt: skip
        data = worker.encode(result)
        begin = time.process_time()
        _, frame = decoder.decode(data)
        sent = scheduler.handle(frame, count * 0.01)
        for _, out in sent:
            encoder.encode(out)
        elapsed = time.process_time() - begin
        steps += [out for _, out in sent if isinstance(out, Step)]
        if step.decode and not step.chunks:
            spent, count, tokens, worst = spent + elapsed, count + 1, tokens + len(rows), max(worst, elapsed)
    result_line = {
        "running": running,
        "waiting": waiting,
        "us_per_step": round(spent / count * 1e6, 1),
        "us_per_token": round(spent / tokens * 1e6, 3),
        "worst_step_us": round(worst * 1e6, 1),
    }
    print(msgspec.json.encode(result_line).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
