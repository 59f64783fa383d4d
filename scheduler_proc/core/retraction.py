"""Who gives way when the running batch has outgrown the KV pool (rules RET-2 and RET-11)."""

from collections.abc import Sequence

from scheduler_proc.core.request import Request


def pick_victim(batch: Sequence[Request], policy: str) -> Request:
    """Return the request to retract: shortest output, then longest prompt, then latest in the batch.

    The shortest output loses the least work; among equals the longest prompt frees the most. With `policy` priority
    the least urgent go first, and that order decides among them.
    """
    by_priority = policy == "priority"
    position = min(
        range(len(batch)),
        key=lambda at: (
            -batch[at].urgency if by_priority else 0,
            len(batch[at].output_ids),
            -batch[at].prompt_tokens,
            -at,
        ),
    )
    return batch[position]
