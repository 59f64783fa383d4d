"""Where a retracted request goes: RET-18."""

import pytest
from factory import Bench, oracle, own_tokens, steady

from tests.support.core_rig import CoreRig

PLACES = [("tail", "w v b a"), ("head", "a b w v"), ("age", "w b a v")]


@pytest.mark.parametrize(("requeue", "order"), PLACES)
def test_ret18_the_place_of_a_retracted_request(requeue: str, order: str) -> None:
    """RET-18: w came before b and a, v after them; b is retracted before a."""
    bench = Bench(pages=100, requeue=requeue)
    bench.wait("w", 4, 0, 8)
    b, a = bench.run("b", 4, 2, 8), bench.run("a", 4, 1, 8)
    bench.wait("v", 4, 0, 8)
    bench.retraction._retract(b, 1, 0.0)
    bench.retraction._retract(a, 1, 0.0)
    bench.queue.order(0.0)
    assert bench.waiting() == order


def test_ret18_urgency_comes_before_the_place() -> None:
    """RET-18, POL-6."""
    bench = Bench(pages=100, requeue="head", enable_priority_scheduling=True)
    bench.wait("urgent", 4, 0, 8, priority=5)
    low = bench.run("low", 4, 2, 8, priority=0)
    bench.retraction._retract(low, 1, 0.0)
    bench.queue.order(0.0)
    assert bench.waiting() == "urgent low"


def test_ret18_lpm_aging_charges_a_request_that_came_back_with_its_number() -> None:
    """RET-18, 4.2: admitted and retracted between two passes, it has used its allowance up."""
    bench = Bench(pages=400, requeue="age", schedule_policy="lpm-aging", aging_share=1.0)
    policy = bench.queue._policy._ordering._arrange  # type: ignore[attr-defined]
    a = bench.wait("a", 100, 0, 8)
    bench.queue.note_computed(1000)
    bench.queue.begin_pass(bench.kv.tree, (), 0, 0.0)
    bench.queue.order(0.0)
    assert policy._ahead and policy._allowance == 100.0
    a.timeline.retractions += 1
    bench.queue.begin_pass(bench.kv.tree, (), 0, 0.0)
    bench.queue.order(0.0)
    assert policy._allowance == 0.0


@pytest.mark.parametrize("requeue", ["tail", "head", "age"])
def test_ret18_outputs_do_not_depend_on_the_place(requeue: str) -> None:
    """RET-18: what is retracted goes on with the token that it would have had."""
    rig = CoreRig(pages=24, page_size=4, init_new_token_ratio=0.05, requeue=requeue)
    rids = [rig.submit(own_tokens(number, 6), params=steady(40)) for number in range(1, 7)]
    rig.run()
    assert rig.scheduler._counters.retractions
    assert [rig.outputs(rid) for rid in rids] == [oracle(own_tokens(number, 6), 40, -1) for number in range(1, 7)]
