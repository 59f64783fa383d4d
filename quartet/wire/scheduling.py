"""The settings of scheduling; a section of quartet.wire.config, by which others import it."""

from typing import Annotated, Literal

from msgspec import Meta

from quartet.wire.section import Section

POLICIES = (
    "fcfs",
    "lpm",
    "lpm-aging",
    "hrrn",
    "dfs-weight",
    "dfs-weight-tutorial",
    "lof",
    "random",
    "routing-key",
    "shortest-prefill-first",
    "session",
)
"""Names of --schedule-policy, beside `multi:` with a comma-separated list of MULTI_LEVELS."""
MULTI_LEVELS = ("priority", "lpm", "lof", "fcfs")


class SchedulerConfig(Section, frozen=True):
    """Scheduling. Names are SGLang's where SGLang has one.

    The fields in quartet.settings.RARE have no flag of their own; `--scheduler-set name=value` sets them.
    """

    schedule_policy: Annotated[
        str, Meta(description=f"order of the waiting queue: {', '.join(POLICIES)}, or multi:LEVELS")
    ] = "fcfs"
    schedule_conservativeness: Annotated[float, Meta(ge=0, description="multiplies the initial new-token ratio")] = 1.0
    init_new_token_ratio: Annotated[
        float, Meta(gt=0, le=1, description="share of the remaining output reserved at first")
    ] = 0.7
    min_new_token_ratio_factor: Annotated[float, Meta(ge=0, le=1, description="floor of the ratio, as a factor")] = 0.14
    new_token_ratio_decay_steps: Annotated[int, Meta(ge=1, description="decode steps from initial to floor")] = 600
    new_token_ratio_decay: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="fall of the ratio in each decode step; default: from the decay steps"),
    ] = None
    retract_decode_steps: Annotated[int, Meta(ge=0, description="steps to make room for when retracting")] = 20
    clip_max_new_tokens_estimation: Annotated[
        int, Meta(ge=1, description="clip on the estimate of remaining output")
    ] = 4096
    max_prefill_tokens: Annotated[int, Meta(ge=1, description="input budget of one prefill pass")] = 16384
    chunked_prefill_size: Annotated[
        int, Meta(ge=-1, description="tokens of one prefill step; -1: no chunking; 0: chosen by device memory")
    ] = 0
    enable_mixed_chunk: Annotated[bool | None, Meta(description="decode rows join prompts; default: on a GPU")] = None
    max_running_requests: Annotated[
        int, Meta(ge=0, description="requests that run at once; 0: chosen by KV capacity")
    ] = 0
    max_queued_requests: Annotated[int, Meta(ge=0, description="waiting requests; beyond it new ones get 503")] = 2048
    max_queued_tokens: Annotated[int, Meta(ge=0, description="prompt tokens that wait before new requests get 503")] = 0
    prefill_max_requests: Annotated[int, Meta(ge=0, description="requests in one prefill pass; 0: no limit")] = 0
    enable_priority_scheduling: Annotated[bool, Meta(description="priorities come first, and preempt")] = False
    schedule_low_priority_values_first: Annotated[bool, Meta(description="small numbers are urgent")] = False
    default_priority_value: Annotated[
        int | None, Meta(description="priority of requests that name none; default: the least urgent")
    ] = None
    abort_on_priority_when_disabled: Annotated[
        bool, Meta(description="refuse requests with a priority while priority scheduling is off")
    ] = False
    disable_priority_preemption: Annotated[bool, Meta(description="order by priority, but never preempt")] = False
    priority_scheduling_preemption_threshold: Annotated[
        int, Meta(ge=0, description="a running request is preempted only for one more urgent by more than this")
    ] = 10
    preempt_accounting: Annotated[Literal["accurate", "compat"], Meta(description="what a preemption victim gives")] = (
        "accurate"
    )
    retraction_policy: Annotated[
        Literal["auto", "length", "priority"],
        Meta(description="whom to retract first; auto: by priority if on"),
    ] = "auto"
    requeue: Annotated[
        Literal["tail", "head", "age"],
        Meta(description="place of a retracted request in the queue; age: before all that came later"),
    ] = "tail"
    retraction_keeps_kv: Annotated[
        bool, Meta(description="a retracted request's KV stays cached until it is needed, and it comes back first")
    ] = False
    radix_eviction_policy: Annotated[
        Literal["lru", "lfu", "fifo", "mru", "filo", "priority", "slru", "session"],
        Meta(description="which cached prefixes are evicted first; session: lru, but KV waits for the next turn"),
    ] = "lru"
    cache_priority_isolation: Annotated[
        bool, Meta(description="a request evicts no cached prefix of a more urgent one")
    ] = False
    disable_radix_cache: Annotated[bool, Meta(description="share no prefixes")] = False
    step_order: Annotated[
        Literal["prefill_first", "decode_first", "slack"], Meta(description="what a step takes first")
    ] = "prefill_first"
    tbt_target_ms: Annotated[
        float,
        Meta(
            ge=0, description="longest time between tokens in milliseconds, by step order decode_first or slack; 0: off"
        ),
    ] = 0.0
    ttft_target_ms: Annotated[
        float, Meta(ge=0, description="time to first token that is aimed at in milliseconds: orders who waits; 0: off")
    ] = 0.0
    shed_hopeless: Annotated[
        bool, Meta(description="answer 503 at once to a request that would miss --ttft-target-ms")
    ] = False
    prefill_decode_interval: Annotated[int, Meta(ge=0, description="decode steps after each prefill step")] = 0
    prefill_decode_interval_min_bs: Annotated[
        int, Meta(ge=0, description="running requests from which the interval counts")
    ] = 0
    min_free_slots_delay: Annotated[
        int, Meta(ge=0, description="free slots before a prefill may start while others decode; 0: off")
    ] = 0
    in_batch_check_threshold: Annotated[
        int, Meta(ge=-1, description="cached tokens up to which in-batch sharing is looked for; -1: off")
    ] = 32
    in_batch_deprioritize_threshold: Annotated[
        int, Meta(ge=0, description="tokens shared with an earlier waiting request that put one off")
    ] = 32
    prefix_match_queue_max: Annotated[
        int, Meta(ge=0, description="waiting requests that cache-aware policies match and order")
    ] = 128
    prefix_match_overflow: Annotated[
        Literal["first", "fcfs"], Meta(description="beyond that: order the first ones, or fall back to fcfs")
    ] = "first"
    aging_share: Annotated[float, Meta(gt=0, le=1, description="share of work lpm-aging does for the oldest")] = 0.08
    tenant_weights: Annotated[
        tuple[str, ...],
        Meta(description="share the service among tenants: NAME=WEIGHT,...; default=1: all alike; none: do not"),
    ] = ()
    tenant_quantum: Annotated[
        int, Meta(ge=0, description="service in tokens inside which the policy's order goes before a tenant's share")
    ] = 8192
    reservation: Annotated[
        Literal["ratio", "blocks", "full", "observed"],
        Meta(description="output reserved at admission: by ratio, in blocks, all of it, or as outputs turn out lately"),
    ] = "ratio"
    reserve_basis: Annotated[
        Literal["remaining", "full"], Meta(description="what the ratio multiplies in block mode")
    ] = "remaining"
    req_waiting_timeout: Annotated[
        float, Meta(description="seconds a request may wait; 0 or less: without limit")
    ] = -1.0
    req_running_timeout: Annotated[
        float, Meta(description="seconds a request may run; 0 or less: without limit")
    ] = -1.0
    speculative_tokens: Annotated[
        int, Meta(ge=0, le=32, description="tokens drafted from a request's own text and checked in one step; 0: off")
    ] = 0
    stream_interval: Annotated[int, Meta(ge=1, description="output tokens from one flush to the next")] = 1
    allow_auto_truncate: Annotated[bool, Meta(description="cut prompts that are too long instead of refusing them")] = (
        False
    )
    test_retract: Annotated[bool, Meta(description="retract every third step (tests)")] = False
    test_retract_no_prefill_bs: Annotated[
        int, Meta(ge=0, description="no prefill above this batch size; 0: off (tests)")
    ] = 0
    random_seed: Annotated[int, Meta(description="seed of policy random and of drawn request seeds")] = 0
