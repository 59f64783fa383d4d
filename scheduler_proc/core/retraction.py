"""Who gives way when the running batch has outgrown the KV pool (rules RET-2 and RET-11)."""

from collections.abc import Sequence

from scheduler_proc.core.request import Request


def pick_victim(batch: Sequence[Request]) -> Request:
    """Return the request to retract: shortest output, then longest prompt, then latest in the batch.

    The shortest output loses the least work; among equals the longest prompt frees the most.
    """
    position, victim = min(
        enumerate(batch), key=lambda item: (len(item[1].output_ids), -item[1].prompt_tokens, -item[0])
    )
    del position
    return victim
