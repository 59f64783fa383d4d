"""A minimal scheduler: assigns slots and pages to sequences, sends steps to a runner and collects the sampled ids."""

from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, StepResult, pack_ids, unpack_ids
from quartet.wire.ids import Epoch
from worker_proc.contract import Runner

GREEDY = SamplingParams(temperature=0.0)
WORKER, SCHEDULER = Epoch(7), Epoch(3)


class StepFeeder:
    """Feeds one runner. Pages are assigned in descending order, so that a mixed-up page table shows."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.page_size = runner.capacity.page_size
        self.free_pages, *self.window_pages = (list(range(1, count + 1)) for count in runner.capacity.page_counts)
        self.outputs: dict[int, list[int]] = {}
        self.next_step = 1

    def enter(
        self,
        slot: int,
        ids: list[int],
        room: int,
        params: SamplingParams = GREEDY,
        prompt_length: int | None = None,
        cached: tuple[int, list[int]] = (0, []),
    ) -> Enter:
        """Return the Enter of a sequence that may grow by `room` tokens; `cached` are tokens in KV and their pages."""
        self.outputs[slot] = []
        cached_length, cached_pages = cached
        needed = -(-(len(ids) + room + 1) // self.page_size) - len(cached_pages)
        pages = cached_pages + [self.free_pages.pop() for _ in range(needed)]
        length = len(ids) if prompt_length is None else prompt_length
        windows = tuple(pack_ids([own.pop() for _ in pages]) for own in self.window_pages)
        own = pack_ids(ids), length, cached_length, pack_ids(pages)
        return Enter(slot, slot + 100, *own, params, 0, window_pages=windows)

    def step(
        self,
        enter: list[Enter] | None = None,
        chunks: list[Chunk] | None = None,
        decode: bool = True,
        release: list[int] | None = None,
        pages: list[int] | None = None,
    ) -> StepResult:
        """Run one step to its end and add its ids to the outputs."""
        frame = Step(
            WORKER,
            self.next_step,
            pack_ids(release or []),
            enter or [],
            pack_ids(pages or []),
            chunks or [],
            decode,
        )
        self.next_step += 1
        result = self.runner.launch(frame, SCHEDULER).wait()
        for slot, generation, token in zip(
            unpack_ids(result.slots), unpack_ids(result.generations), unpack_ids(result.ids), strict=True
        ):
            assert generation == slot + 100
            self.outputs[slot].append(token)
        return result

    def generate(self, slot: int, ids: list[int], count: int, params: SamplingParams = GREEDY) -> list[int]:
        """Run one sequence alone, its prompt in one chunk, and release it."""
        self.step([self.enter(slot, ids, count, params)], [Chunk(slot, len(ids), True)])
        while len(self.outputs[slot]) < count:
            self.step()
        self.step(release=[slot], decode=False)
        return self.outputs[slot]
