"""RET-4 for those that wait: what the last row gives up is taken at once, without another frame."""

import pytest
from factory import greedy, own_tokens

from tests.support.core_rig import CoreRig


def test_a_prompt_in_progress_goes_on_when_the_last_row_gives_way() -> None:
    """48 pages for requests of 43 and 21 tokens."""
    rig = CoreRig(
        pages=48,
        page_size=1,
        slots=2,
        chunked_prefill_size=1,
        init_new_token_ratio=0.05,
        prefill_decode_interval=1,
        disable_radix_cache=True,
    )
    rids = [rig.submit(own_tokens(1, 18), 25), rig.submit(own_tokens(2, 20), 1)]
    rig.run()
    assert [rig.streams[rid, 0].ending for rid in rids] == ["length", "length"]
    assert rig.scheduler._counters.retractions


@pytest.mark.parametrize("order", ["prefill_first", "decode_first"])
def test_the_next_request_enters_when_the_last_row_has_failed(order: str) -> None:
    rig = CoreRig(pages=40, page_size=16, slots=1, chunked_prefill_size=-1, step_order=order)
    lone = rig.submit(own_tokens(1, 510), params=greedy(100))
    kv = rig.scheduler._kv
    kv.pool.allocate(kv.pool.available_tokens // 16)
    rig.scheduler.audit = lambda: None  # type: ignore[method-assign]
    later = rig.submit([1, 2, 3], 4)
    rig.run()
    assert rig.streams[lone, 0].ending == "out_of_memory"
    assert rig.streams[later, 0].ending in ("length", "stop")
