"""Checkpoints of states, CKP-1 to CKP-5 and INV-10. The strict worker compares each state that a sequence starts from
with its prefix, and the audit runs after every event."""

import pytest

from quartet.wire.errors import InvariantViolation
from quartet.wire.ids import Rid
from scheduler_proc.core.checkpoints import Checkpoints, Saved, Spacing
from scheduler_proc.core.lease import NONE, Lease, PendingCheckpoint
from scheduler_proc.core.radix import RadixTree
from tests.support.core_rig import VOCAB, CoreRig
from tests.support.strict_worker import continuation

PAGE = 4
DOCUMENT = [i * 7 % 50 + 1 for i in range(42)]
SHARED = 40
"""The whole pages of the document."""


def rig_with(checkpoints: int, slots: int = 4, spacing: Spacing | None = None, **config: int | bool) -> CoreRig:
    spacing = spacing or Spacing(2 * PAGE, PAGE)
    config = {"chunked_prefill_size": 256, "pages": 200, **config}
    return CoreRig(page_size=PAGE, slots=slots, checkpoints=checkpoints, spacing=spacing, **config)  # type: ignore[arg-type]


def ask(rig: CoreRig, number: int, prompt: list[int] | None = None, max_new: int = 6) -> Rid:
    return rig.submit(prompt or [*DOCUMENT, 60 + number, 61 + number], max_new, name=number)


def entered(rig: CoreRig) -> list[int]:
    """The cached tokens of each entry since the last call."""
    assert rig.worker is not None
    lengths, rig.worker.cached_lengths = rig.worker.cached_lengths, []
    return lengths


def check_outputs(rig: CoreRig) -> None:
    for (rid, _), stream in rig.streams.items():
        prompt = [*memoryview(stream.submit.prompt_ids).cast("i")]
        assert rig.outputs(rid) == continuation(prompt, stream.submit.params.max_new_tokens or 0, VOCAB, 0)


def test_a_prefix_is_shared_from_the_second_time_that_it_is_seen() -> None:
    """CKP-1, CKP-2: the second prompt stops where its cached pages end; from there the others start."""
    rig = rig_with(3)
    for number in range(4):
        ask(rig, number)
        rig.run()
    assert entered(rig) == [0, 0, SHARED, SHARED]
    check_outputs(rig)


def test_without_checkpoints_nothing_is_shared() -> None:
    """CKP-1."""
    rig = rig_with(0)
    for number in range(3):
        ask(rig, number)
        rig.run()
    assert entered(rig) == [0, 0, 0] and not rig.scheduler.kv.tree.evictable_tokens


def test_what_waits_together_shares_the_first_time() -> None:
    """CKP-2: prompts that wait part at the end of the document, so the first stops there; others wait."""
    rig = rig_with(3)
    ask(rig, 9, [2, 3], 3)
    for number in range(4):
        ask(rig, number)
    rig.run()
    assert entered(rig) == [0, 0, SHARED, SHARED, SHARED]
    check_outputs(rig)


def test_one_prompt_is_cut_at_a_time() -> None:
    """CKP-2: the pass stops at the next one."""
    rig = rig_with(3)
    other = [token + 1 for token in DOCUMENT]
    ask(rig, 9, [2, 3], 3)
    for number, beginning in enumerate((DOCUMENT, other) * 2):
        ask(rig, number, [*beginning, 70 + number])
    chunks: list[int] = []
    rig.watch(lambda frame: chunks.append(len(frame.chunks)) if hasattr(frame, "chunks") and frame.chunks else None)
    rig.run()
    assert entered(rig) == [0, 0, 0, SHARED, SHARED]
    assert rig.scheduler.queue.stop_reasons["checkpoint"] and chunks[0] == 1
    check_outputs(rig)


def test_short_stretches_are_not_worth_a_cut() -> None:
    """CKP-2."""
    rig = rig_with(3, spacing=Spacing(SHARED + 1, 1000))
    for number in range(3):
        ask(rig, number)
        rig.run()
    assert entered(rig) == [0, 0, 0] and rig.scheduler.kv.checkpoints.held_count == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("spacing", [PAGE, 3 * PAGE])
def test_a_turn_starts_from_what_the_last_one_has_saved(spacing: int) -> None:
    """CKP-3: of a running request the newest is kept alone; it is in the tree when its tokens are known."""
    rig = rig_with(3, spacing=Spacing(2 * PAGE, spacing))
    first = ask(rig, 1, DOCUMENT, 30)
    rig.run()
    kv = rig.scheduler.kv
    assert kv.checkpoints is not None and kv.checkpoints.held_count == 1
    ask(rig, 2, [*DOCUMENT, *rig.outputs(first), 5, 6])
    rig.run()
    computed = 42 + len(rig.outputs(first)) - 1
    assert entered(rig) == [0, 44 + (computed - 44) // spacing * spacing]
    check_outputs(rig)


def test_which_checkpoints_give_way() -> None:
    """CKP-4."""
    tree, books = RadixTree(1), Checkpoints(4)
    nodes = [tree.insert(bytes([n, 0, 0, 0]), [n], 0, (str(n),))[2] for n in range(1, 7)]
    for number, node in enumerate(nodes[:4]):
        books.hold(node, Saved(books.take(False), number), False)
    assert [books.use(nodes[at]) for at in (0, 1)] == [0, 1]
    books.hold(nodes[4], Saved(books.take(False), 5), True)
    assert [books.usable(node) is node for node in nodes] == [True, True, False, True, True, False]
    assert books.take(False) == 3 and books.take(False) == NONE
    assert books.take(True) == 0 and books.usable(nodes[0]) is tree.root
    books.give_back(0)
    books.give_back(3)
    books.forget_written_since(5)
    assert books.held_count == 1
    books.audit(tree.nodes(), [])
    books.hold(nodes[1], Saved(books.take(False), 7), False)
    assert books.held_count == 1, "a node keeps the checkpoint that it has"


def test_proven_ones_leave_a_share_to_new_ones() -> None:
    """CKP-4."""
    tree, books = RadixTree(1), Checkpoints(4)
    nodes = [tree.insert(bytes([n, 0, 0, 0]), [n], 0, (str(n),))[2] for n in range(1, 6)]
    for node in nodes[:4]:
        books.hold(node, Saved(books.take(True), 0), True)
    assert books.take(False) == 0 and books.take(False) == NONE


def test_what_a_retracted_request_keeps() -> None:
    """CKP-5: it starts again from the last state that it has saved, in the middle of its output."""
    rig = rig_with(8, spacing=Spacing(2 * PAGE, PAGE), test_retract=True)
    for number in range(3):
        ask(rig, number, max_new=30)
    rig.run()
    assert rig.scheduler.snapshot()[1]["retractions"] > 2
    assert max(entered(rig)) > len(DOCUMENT) + 4
    check_outputs(rig)


def test_a_failed_step_and_a_lost_worker_take_what_they_had() -> None:
    """CKP-5."""
    rig = rig_with(3)
    ask(rig, 0, max_new=40)
    while not rig.steps[-1].saves:
        rig.step()
    rig.fail_step()
    rig.run()
    assert entered(rig)[0] == 0
    check_outputs(rig)
    checkpoints = rig.scheduler.kv.checkpoints
    assert checkpoints is not None and checkpoints.held_count
    rig.worker_lost()
    assert not checkpoints.held_count
    rig.worker_up()
    ask(rig, 1)
    rig.run()
    assert entered(rig) == [0]


def test_pages_that_go_take_their_checkpoints() -> None:
    """CKP-4: and a flush all of them."""
    rig = rig_with(3)
    ask(rig, 0, max_new=20)
    rig.run()
    kv = rig.scheduler.kv
    assert kv.checkpoints is not None and kv.checkpoints.held_count == 2
    kv.flush()
    assert kv.checkpoints.held_count == 0
    rig.scheduler.audit()


@pytest.mark.parametrize("fault", ["twice", "lost", "gone"])
def test_the_audit_finds_wrong_books(fault: str) -> None:
    """INV-10: each checkpoint is free, of one node of the tree, or of one lease."""
    rig = rig_with(3)
    ask(rig, 0, max_new=20)
    rig.run()
    books, lease = rig.scheduler.kv.checkpoints, Lease()
    assert books is not None
    if fault == "twice":
        lease.pending = PendingCheckpoint(4, 0, 1)
    elif fault == "lost":
        books.take(False)
    with pytest.raises(InvariantViolation, match="INV-10"):
        books.audit([] if fault == "gone" else rig.scheduler.kv.tree.nodes(), [lease])
