"""Every metric that `GET /metrics` may show: name, kind, help and labels. Nothing is exported that is not defined here.

`/metrics`, its page in docs/operations.md, the Grafana dashboard and the alert rules are made from this table or
checked against it. Names get the prefix `quartet_`, counters the suffix `_total`.
"""

from typing import NamedTuple

PREFIX = "quartet_"


class Family(NamedTuple):
    """One metric. `key` is its name in the Snapshots of the processes, where that is another; `labels` are those
    beside `model_name` and `process`."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    key: str = ""

    @property
    def exported(self) -> str:
        """The name that a query uses; of a histogram without `_bucket`, `_sum` or `_count`."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"

SECTIONS: dict[str, tuple[Family, ...]] = {
    "Requests": (
        Family("requests", COUNTER, "Finished requests; abort: the client has left.", ("finish_reason",)),
        Family("requests_rejected", COUNTER, "Refused requests, by the code of the error.", ("reason",)),
        Family("http_requests", COUNTER, "HTTP requests, by route and status.", ("route", "status")),
        Family("open_requests", GAUGE, "Requests whose response is open."),
        Family("connections", GAUGE, "Open connections of clients."),
        Family("connections_refused", COUNTER, "Connections beyond the limit of descriptors."),
        Family("connections_stalled", COUNTER, "Connections closed because the client did not read."),
        Family("clients_closed", COUNTER, "Requests whose client left before the end."),
        Family("clients_stalled", COUNTER, "Streams given up because the client did not read for a minute."),
        Family("sse_writes", COUNTER, "Writes of server-sent events."),
    ),
    "Latency": (
        Family("time_to_first_token_seconds", HISTOGRAM, "From the request to its first output."),
        Family("inter_token_latency_seconds", HISTOGRAM, "Between two outputs of a request with one choice."),
        Family("request_time_per_output_token_seconds", HISTOGRAM, "Mean time per token after the first."),
        Family("e2e_request_latency_seconds", HISTOGRAM, "From the request to its last output."),
        Family("request_queue_time_seconds", HISTOGRAM, "Time in the waiting queue, of the slowest choice."),
        Family("request_prefill_time_seconds", HISTOGRAM, "From admission to the first token."),
        Family("request_decode_time_seconds", HISTOGRAM, "From the first token to the last."),
        Family("request_prompt_tokens", HISTOGRAM, "Tokens of a prompt."),
        Family("request_generation_tokens", HISTOGRAM, "Output tokens of a request, all choices together."),
        Family("request_max_num_generation_tokens", HISTOGRAM, "Output tokens of the longest choice of a request."),
        Family(
            "longest_decode_gap_seconds", GAUGE, "Longest pause between two decode steps.", (), "longest_decode_gap_s"
        ),
    ),
    "Queue and batch": (
        Family("num_running_reqs", GAUGE, "Requests in the batch."),
        Family("num_queue_reqs", GAUGE, "Requests that wait for a place in the batch."),
        Family(
            "num_queue_reqs_by_reason",
            GAUGE,
            "Waiting requests: capacity (not run so far), retracted (they have run), grammar (it is being compiled).",
            ("reason",),
        ),
        Family("num_grammar_queue_reqs", GAUGE, "Requests whose grammar is being compiled."),
        Family("num_queue_tokens", GAUGE, "Tokens of the waiting requests that are to be computed, at most."),
        Family("max_running_reqs", GAUGE, "Most requests in the batch; 0 until a worker is ready."),
        Family(
            "num_retracted_requests", COUNTER, "Requests put back because the KV cache was full.", (), "retractions"
        ),
        Family("num_preempted_requests", COUNTER, "Requests put back for more urgent ones.", (), "preemptions"),
        Family("new_token_ratio", GAUGE, "Share of the remaining output that is reserved at admission."),
        Family("passes_stopped", COUNTER, "Admission passes that ended before the queue did.", ("reason",)),
        Family("requests_ended", COUNTER, "Ends of requests as the scheduler sees them.", ("cause",)),
        Family("finished", COUNTER, "Requests that the scheduler has finished."),
        Family("prefill_steps", COUNTER, "Steps with prefill rows."),
        Family("decode_steps", COUNTER, "Steps with decode rows."),
        Family("wasted_rows", COUNTER, "Rows computed past the end of a request."),
    ),
    "KV cache": (
        Family("token_usage", GAUGE, "Share of the KV cache that requests use, 0 to 1."),
        Family("kv_capacity_tokens", GAUGE, "Tokens that the KV cache holds."),
        Family("kv_used_tokens", GAUGE, "Tokens held by requests."),
        Family("kv_available_tokens", GAUGE, "Tokens in free pages."),
        Family("kv_evictable_tokens", GAUGE, "Tokens of cached prefixes that no request uses."),
        Family("kv_protected_tokens", GAUGE, "Tokens of cached prefixes that requests use."),
        Family("state_checkpoints", GAUGE, "Recurrent states that can be kept for cached prefixes."),
        Family("state_checkpoints_held", GAUGE, "Recurrent states that are kept for cached prefixes."),
        Family("kv_window_capacity_tokens", GAUGE, "Tokens that the pool of a window's layers holds.", ("window",)),
        Family("kv_window_used_tokens", GAUGE, "Tokens of that pool held by requests.", ("window",)),
        Family("cache_config_info", GAUGE, "1; its labels are the sizes of the cache.", ("page_size", "num_pages")),
        Family("prefix_queries", COUNTER, "Prompt tokens looked up in the prefix cache.", (), "input_tokens"),
        Family("prefix_hits", COUNTER, "Prompt tokens found in the prefix cache.", (), "cached_tokens"),
        Family("cache_hit_rate", GAUGE, "prefix_hits / prefix_queries since the start."),
    ),
    "Tokens": (
        Family(
            "prompt_tokens", COUNTER, "Prompt tokens of admitted requests, cached ones included.", (), "input_tokens"
        ),
        Family("generation_tokens", COUNTER, "Output tokens.", (), "output_tokens"),
        Family("gen_throughput", GAUGE, "Output tokens per second since it was last asked for."),
        Family("prefill_tokens", COUNTER, "Prompt tokens computed, those computed again included."),
        Family("session_turns", COUNTER, "Turns of sessions after the first; with policies that know sessions."),
        Family("session_held_turns", COUNTER, "Turns that found the KV of the turn before held for them."),
        Family("recomputed_tokens", COUNTER, "Tokens computed again after a retraction."),
        Family("drafted_tokens", COUNTER, "Tokens drafted by --speculative-tokens."),
        Family("accepted_tokens", COUNTER, "Drafted tokens that held."),
        Family("retracted_input_tokens", COUNTER, "Prompt tokens of retracted requests."),
        Family("retracted_output_tokens", COUNTER, "Output tokens of retracted requests."),
    ),
    "Processes": (
        Family("process_up", GAUGE, "1 while the process is ready.", ("role", "rank")),
        Family("process_restarts", COUNTER, "Deaths of the process.", ("role", "rank")),
        Family("process_last_recovery_seconds", GAUGE, "Last restart: from death to readiness.", ("role", "rank")),
        Family("process_resident_memory_bytes", GAUGE, "Resident memory.", ("role",)),
        Family("process_cpu_seconds", COUNTER, "Processor time, user and system.", ("role",)),
        Family("process_start_up_seconds", GAUGE, "From the start of the process to its readiness.", ("role",)),
        Family("ipc_queue_depth", GAUGE, "Most frames found waiting in the inbox at once, last second.", ("role",)),
        Family("frames_dropped", COUNTER, "Frames not acted upon.", ("reason",)),
    ),
    "Api processes": (
        Family("api_live_requests", GAUGE, "Choices in the journal."),
        Family("api_admitted_choices", GAUGE, "Choices that the api process has let in."),
        Family("api_waiting_choices", GAUGE, "Of those, choices without output so far."),
        Family("api_large_body_bytes", GAUGE, "Bytes of large bodies being read."),
        Family("api_replays", COUNTER, "Requests submitted again after a death."),
        Family("api_replay_divergences", COUNTER, "Replayed output that differs from what was delivered."),
        Family("api_stale_items", COUNTER, "Output of former attempts."),
        Family("api_quarantined_requests", COUNTER, "Requests found to end a process."),
        Family("api_quarantine_refusals", COUNTER, "Refusals of requests like a quarantined one."),
        Family("recorded_streams", GAUGE, "Streams that are kept for their readers."),
        Family("streams_resumed", COUNTER, "Streams taken over from a dead api process."),
        Family("journal_bytes", GAUGE, "Bytes of the files of recorded streams."),
        Family("journal_degraded", GAUGE, "1 while recorded streams cannot be written."),
    ),
    "Tokenizers and detokenizers": (
        Family("tokenizer_jobs", COUNTER, "Prompts encoded."),
        Family("tokenizer_failed_jobs", COUNTER, "Prompts that could not be encoded, for a fault of the request."),
        Family("tokenizer_refused_jobs", COUNTER, "Prompts refused because too many waited."),
        Family("tokenizer_pending_jobs", GAUGE, "Prompts that wait for a tokenizer or are with it."),
        Family("detok_streams", GAUGE, "Streams of text in progress."),
        Family("detok_tokens", COUNTER, "Output tokens turned into text."),
        Family("detok_failed_streams", COUNTER, "Streams that failed."),
        Family("detok_unknown_handles", COUNTER, "Rows and frames of unknown streams."),
        Family("detok_late_rows", COUNTER, "Rows after the end of a stream."),
        Family("detok_duplicate_rows", COUNTER, "Rows that came twice."),
        Family("detok_gaps", COUNTER, "Missing rows."),
    ),
    "Worker": (
        Family("worker_steps", COUNTER, "Steps run."),
        Family("worker_failed_steps", COUNTER, "Steps that raised, such as out of memory."),
        Family("worker_sampled_tokens", COUNTER, "Tokens sampled."),
        Family("worker_prefill_tokens", COUNTER, "Prompt tokens computed."),
        Family("worker_busy_seconds", COUNTER, "Time in steps."),
        Family("worker_compiles_after_ready", COUNTER, "Kernels compiled while serving."),
        Family("worker_losses", COUNTER, "Deaths of the worker as the scheduler saw them."),
        Family("worker_sessions_lost", COUNTER, "Sessions begun again because a frame was lost."),
        Family("step_memory_shortages", COUNTER, "Steps that failed for lack of memory."),
        Family("worker_start_up_seconds", GAUGE, "Phases of the worker's start.", ("phase",)),
    ),
}

FAMILIES: dict[str, Family] = {family.name: family for section in SECTIONS.values() for family in section}


def by_key() -> dict[str, tuple[Family, ...]]:
    """Return the families that each key of a Snapshot feeds."""
    found: dict[str, tuple[Family, ...]] = {}
    for family in FAMILIES.values():
        key = family.key or family.name
        found[key] = (*found.get(key, ()), family)
    return found
