"""What ordering the waiting queue costs: one `Policy.order` call, by policy and by size of the prefix cache.

    python -m benchmarks.simulation.policy_pass [--waiting 1000] [--passes 400] [--cached-sequences 1000,10000]
                                     [--policies lpm,hrrn] [--no-gc] [--cpu]

The queue holds `--waiting` requests of 2,176 tokens in groups of 8 that share their first 2,048. Half of the groups
have that prefix in the cache; the rest of the cache is unrelated. Each pass takes 4 requests off the head, inserts one
of them, so that no match of the pass before is valid, and queues 4 others; only `order` is timed. `unchanged` times
passes without any change between them. Prints microseconds of wall time: minimum, median, 99th percentile, maximum.
These include Python's cycle collector, unless --no-gc switches it off. On a shared machine, --cpu reports the CPU time
of the thread instead.
"""

import argparse
import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator

from quartet.wire.config import POLICIES, SchedulerConfig
from quartet.wire.frames import SamplingParams, Submit, pack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.policies import PolicyContext, make_policy
from scheduler_proc.core.radix import RadixTree
from scheduler_proc.core.request import Request

PAGE_SIZE = 16
SHARED_TOKENS = 2048
TAIL_TOKENS = 128
GROUP = 8
VOCAB = 50_000
TAKEN_PER_PASS = 4


def random_ids(draw: random.Random, count: int) -> list[int]:
    """Return `count` token ids."""
    return [draw.randrange(VOCAB) for _ in range(count)]


def make_requests(draw: random.Random, tree: RadixTree) -> Iterator[Request]:
    """Yield requests in order of arrival without end; every other group finds its prefix in `tree`."""
    for group in itertools.count():
        shared = random_ids(draw, SHARED_TOKENS)
        if group % 2:
            tree.insert(pack_ids(shared), list(range(SHARED_TOKENS // PAGE_SIZE)), 0, ("", ""))
        for member in range(GROUP):
            number = group * GROUP + member + 1
            ids = pack_ids(shared + random_ids(draw, TAIL_TOKENS))
            params = SamplingParams(max_new_tokens=draw.randrange(1, 500))
            key = f"key-{group % 5}"
            submit = Submit(
                Rid(number.to_bytes(16, "big")), 0, 0, "api-0", "detok-0", ids, b"", params, routing_key=key
            )
            yield Request(submit, params.max_new_tokens or 0, (), number, number, 0.0)


def fill(draw: random.Random, tree: RadixTree, sequences: int) -> None:
    """Put unrelated sequences into the tree, 32 pages each."""
    for number in range(sequences):
        ids = pack_ids([number, *random_ids(draw, 7)] * 64)
        tree.insert(ids, list(range(32)), 0, ("", ""))


def time_passes(
    policy_name: str, waiting: int, passes: int, sequences: int, is_changing: bool, clock: Callable[[], float]
) -> list[float]:
    """Return the microseconds of each pass by `clock`."""
    draw = random.Random(0)
    tree = RadixTree(PAGE_SIZE)
    fill(draw, tree, sequences)
    source = make_requests(draw, tree)
    queue = list(itertools.islice(source, waiting))
    running = list(itertools.islice(source, 64))
    config = SchedulerConfig(schedule_policy=policy_name)
    policy = make_policy(config)
    times = []
    gc.collect()
    for number in range(1, passes + 1):
        context = PolicyContext(config, tree, running, number * 8192, number)
        start = clock()
        policy.order(queue, context)
        times.append((clock() - start) * 1e6)
        if is_changing:
            taken, queue = queue[:TAKEN_PER_PASS], queue[TAKEN_PER_PASS:]
            pages = list(range(taken[0].prompt_tokens // PAGE_SIZE))
            tree.insert(taken[0].key(), pages, number, taken[0].namespace)
            queue += itertools.islice(source, TAKEN_PER_PASS)
    return times


def report(label: str, times: list[float]) -> None:
    """Print one line."""
    ranked = sorted(times)
    p50, p99 = ranked[len(ranked) // 2], ranked[int(len(ranked) * 0.99)]
    print(f"{label:44s} {ranked[0]:8.0f} {p50:8.0f} {p99:8.0f} {ranked[-1]:8.0f}", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--passes", type=int, default=400)
    parser.add_argument("--cached-sequences", default="1000,10000")
    parser.add_argument("--policies", default=",".join((*POLICIES, "multi:priority,lpm,fcfs")))
    parser.add_argument("--no-gc", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    clock = time.thread_time if args.cpu else time.perf_counter
    if args.no_gc:
        gc.disable()
    print(f"{'policy, cached tokens':44s} {'min us':>8s} {'p50':>8s} {'p99':>8s} {'max':>8s}")
    names = args.policies.replace("multi:priority,lpm,fcfs", "multi").split(",")
    for name, count in itertools.product(names, args.cached_sequences.split(",")):
        policy = "multi:priority,lpm,fcfs" if name == "multi" else name
        label = f"{policy}, {int(count) * 512 / 1000:.0f}k"
        report(label, time_passes(policy, args.waiting, args.passes, int(count), is_changing=True, clock=clock))
    report("lpm, unchanged", time_passes("lpm", args.waiting, args.passes, 1000, is_changing=False, clock=clock))


if __name__ == "__main__":
    main()
