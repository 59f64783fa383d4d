"""When the state of a sequence is saved to a checkpoint, and how the copy gets to its place in the tree (CKP-2, CKP-3).

A chunk's tokens are known and its pages in the tree when the step that saves its state is issued. A row's last token is
not: the checkpoint is pending until it is, and its pages enter the tree with it.
"""

from quartet.wire.frames import ID_BYTES
from scheduler_proc.core.checkpoints import Saved
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lease import NONE, Lease, PendingCheckpoint


def save_state(kv: KvCache, lease: Lease, step: int, may_pass: bool) -> int:
    """Return where the state of a sequence, which ends with a page, is saved after the step being issued, or NONE.
    `may_pass`: not only where its prompt is cut."""
    checkpoints, end = kv.checkpoints, lease.num_computed_tokens
    is_cut = bool(lease.cuts) and lease.cuts[0] == end
    if is_cut:
        del lease.cuts[0]
    is_due = may_pass and end - lease.saved_tokens >= kv.spacing.passing and lease.pending is None
    if checkpoints is None or not (is_cut or is_due):
        return NONE
    number = checkpoints.take(is_cut)
    if number != NONE:
        lease.saved_tokens = end
        if lease.protected == end:
            assert lease.node is not None
            checkpoints.hold(lease.node, Saved(number, step), is_cut)
        else:
            lease.pending = PendingCheckpoint(end, number, step)
    return number


def settle_state(kv: KvCache, lease: Lease, key: bytes, step: int) -> tuple[list[tuple[int, int]], list[int]] | None:
    """Put what a row has saved into the tree, with its pages, if all its tokens are in `key`; else return None.

    Returns what `KvCache.register` does, but the steps that write the lease's own pages have been issued. The
    checkpoint that the sequence had from an earlier row is given up, if it was not used: the new one supersedes it."""
    pending, checkpoints = lease.pending, kv.checkpoints
    if pending is None or checkpoints is None or pending.tokens * ID_BYTES > len(key):
        return None
    changes = kv.register(lease, key, step, pending.tokens)
    assert lease.node is not None
    lease.pending = None
    if lease.row_node is not None:
        checkpoints.give_up_new(lease.row_node)
    lease.row_node = lease.node
    checkpoints.hold(lease.node, Saved(pending.number, pending.step), False)
    return changes
