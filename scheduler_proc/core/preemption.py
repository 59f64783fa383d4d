"""Which running requests give way to a more urgent one (rules PRE-1 to PRE-7).

Source: SGLang's preempt_to_schedule, with the departures that the rules name.
"""

from collections.abc import Iterable

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.admission import PrefillAdder
from scheduler_proc.core.lengths import ceil_to
from scheduler_proc.core.request import Request


def pick_victims(
    newcomer: Request,
    running: Iterable[Request],
    adder: PrefillAdder,
    config: SchedulerConfig,
    needs_slot: bool,
    withheld_tokens: int = 0,
) -> list[Request]:
    """Return the requests to preempt so that `newcomer`, whose match is locked, is admitted; none if it cannot be.

    All or nothing (PRE-5). With `needs_slot` at least one is taken even if KV suffices.

    Args:
        running: candidates in batch order; nothing of this pass, not the chunked request.
        adder: the budget of the pass.
        withheld_tokens: cached tokens that the newcomer may not evict.
    """
    is_compat = config.preempt_accounting == "compat"
    missing = adder.missing_for(newcomer, is_compat) + withheld_tokens
    victims: list[Request] = []
    for victim in sorted(running, key=lambda request: (-request.urgency, -request.qseq)):
        if _suffices(missing, is_compat) and (victims or not needs_slot):
            break
        if victim.urgency - newcomer.urgency <= config.priority_scheduling_preemption_threshold:
            break
        victims.append(victim)
        missing -= adder.reservation_of(victim)
        if not is_compat:
            missing -= ceil_to(victim.lease.num_computed_tokens, adder.page_size) - victim.lease.protected
    return victims if victims and _suffices(missing, is_compat) else []


def _suffices(missing: float, is_compat: bool) -> bool:
    return missing <= 0 if is_compat else missing < 0
