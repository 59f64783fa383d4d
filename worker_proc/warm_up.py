"""One step of each kind before the first request, so that no request waits for a first call or a compilation."""

from collections.abc import Callable, Sequence

from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids
from quartet.wire.ids import Epoch
from worker_proc.contract import Capacity, InFlightStep

_NO_EPOCH = Epoch(0)
_GREEDY = SamplingParams(temperature=0.0)
# Sampling parameters that use the full sampler's kernels.
_FILTERED = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)


def warm_up(
    launch: Callable[[Step, Epoch], InFlightStep],
    capacity: Capacity,
    lengths: Sequence[int],
    progress: Callable[[], None],
) -> None:
    """Prefill and decode once at each prompt length that fits, then draw once with filters; no slot stays in use.

    The filtered draw comes last, and nothing is decoded from it: its id is arbitrary while launches are recorded."""
    limit = min(capacity.context_length - 2, min(capacity.page_counts) * capacity.page_size - 2)
    fitting = sorted({min(length, limit) for length in lengths if limit >= 1})
    decode, release = (
        Step(_NO_EPOCH, 1, b"", [], b"", [], True),
        Step(_NO_EPOCH, 2, pack_ids([0]), [], b"", [], False),
    )
    steps = [step for length in fitting for step in (_prefill(length, _GREEDY, capacity), decode, release)]
    steps += [step for length in fitting[:1] for step in (_prefill(length, _FILTERED, capacity), release)]
    for step in steps:
        launch(step, _NO_EPOCH).wait()
        progress()


def _prefill(length: int, params: SamplingParams, capacity: Capacity) -> Step:
    pages = pack_ids(list(range(1, -(-(length + 2) // capacity.page_size) + 1)))
    enter = Enter(
        0, 0, pack_ids([0] * length), length, 0, pages, params, 0, window_pages=(pages,) * len(capacity.windows)
    )
    return Step(_NO_EPOCH, 0, b"", [enter], b"", [Chunk(0, length, True)], False)
