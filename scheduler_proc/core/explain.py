"""Where the time of a request went, in sentences."""

from collections.abc import Iterable

from scheduler_proc.core.timeline import Part

SENTENCES = {
    "accepting": "the api process read and checked it",
    "tokenizing": "its prompt was tokenized",
    "earlier_attempts": "it waited or ran before a process was restarted",
    "grammar": "its grammar was compiled",
    "queued_for_worker": "it waited for a worker to be up",
    "queued_for_step": "it waited for the steps in flight",
    "queued_for_decodes": "it waited for decode steps that go before prompts",
    "queued_behind_prompts": "it waited while prompts before it were computed",
    "queued_for_kv": "it was the next in the queue and waited for free KV pages",
    "queued_behind_kv": "it waited behind a request for which KV pages were missing",
    "queued_for_slot": "it waited for a slot in the batch",
    "queued_for_memory": "it waited because a step had run out of device memory",
    "queued_on_probation": "it waited while requests were tried one at a time after the worker had died",
    "queued_for_own_token": "it waited for a token of its own that was in flight",
    "prefill": "its prompt was computed",
    "prefill_waits": "steps of others ran before and between those of its prompt",
    "decode": "its output was computed",
    "decode_stalled": "its output stood still while prompts of others were computed",
    "decode_other": "it was in no step, or between two",
    "step_lost": "a step of it was lost",
    "writing": "its client had not read what there was",
}
"""What each part of a request's time means."""
SMALLEST_SHARE = 0.01


def sentences(parts: Iterable[Part], total_s: float) -> list[str]:
    """Return a sentence for each part of at least SMALLEST_SHARE of the time, the longest first."""
    found = sorted(parts, key=lambda part: -part[2])
    told = []
    for name, setback, seconds in found:
        if seconds < SMALLEST_SHARE * total_s:
            continue
        after = f", after a {setback}" if setback else ""
        told.append(f"{seconds:.3f} s ({100 * seconds / total_s:.0f} %): {SENTENCES[name]}{after}.")
    return told
