"""The sans-IO scheduler: frames in, frames out, time and seeds as arguments.

scheduler.py makes the owners and hands each to at most three parts. Every fact has one owner, which alone changes it;
the one exception is the hot loop of results.py, which adds to columns and takes out generations without a call.

    owner              file              what it owns                             handed to
    WaitingQueue       queue.py          waiting requests, entry numbers, limit,  RequestTable, Retraction, PrefillPass
                                         policy, passes and why they stopped
    Batch              batch.py          running and chunked requests, slots;     RequestTable, Retraction, PrefillPass
                                         the one way in and the one way out
    StepsInFlight      in_flight.py      steps without result, generations,       Batch, Retraction, Results
                                         worker epoch, the model of step times
    KvCache            kv.py             page pool, radix tree, every lease       Batch, Retraction, PrefillPass
    Delivery           delivery.py       frames and tokens to send, every stream  RequestTable, Results, Intake
    RequestTable       request_table.py  live requests by name, deadlines, ends,  Retraction, Results, Intake
                                         the last that ended
    NewTokenRatio      ratio.py          the new-token ratio (RAT)                Retraction, PrefillPass
    Sessions           sessions.py       sessions, their service and gaps,      RequestTable, PrefillPass
                                         for how long their KV is held
    ObservedLengths    observed.py       lengths of outputs that have ended       RequestTable, PrefillPass
    SchedulerCounters  counters.py       counts of events                         Retraction, PrefillPass, Results
    MemoryLimit        memory_limit.py   what a step may hold after a shortage    PrefillPass, Results
    Suspects           suspects.py       what may have ended the worker, what is  PrefillPass, Results, Intake
                                         refused for it
    GrammarQueue       grammars.py       requests whose grammar is not compiled,  Intake
                                         which grammars are
    Speculation        speculation.py    texts of running requests, whether       -
                                         drafts are made, which lengths are stale

The parts, in the order of one call of `handle`:

    Intake           intake.py           Submit, Abort, LiveRequests, GrammarCompiled; holds Submits until a worker is
                                         up and has compiled their grammars
    Results          results.py          StepResult, Stopped, StepFailed: append, finish, undo
    PrefillPass      prefill.py          one pass over the queue: admission.py says what fits, peak.py at its peak,
                                           window_budget.py in the pools of windows
    Retraction       retraction.py       the memory check of decode steps, retraction, preemption, choice of victims;
                                         thrash_guard.py for retraction that keeps KV
    Speculation      speculation.py      drafts of a request's own text, found by text_match.py

A request (request.py, with the literal table of its states) has a lease (lease.py), a stream (stream.py), a timeline
(timeline.py) and, if they are wanted, the scores of its prompt (prompt_scores.py). What has one owner inside the
request itself: `qseq`, `passes_at_entry` and `processed_at_entry` the queue, `matched_tokens`, `matched_node` and
`is_deprioritized` its policy, `charged_outputs` the tenants' shares in it, `slot`, `launched` and `launched_at_entry`
the batch, `generation` the steps in flight, `output_ids` the results, `suspicion` (suspicion.py) the suspects.
`session` (session.py) is set by the sessions. `in_flight` is counted up by the batch and down by results. A retraction
of everything (a lost worker) sets it to 0.

radix.py, radix_node.py, radix_audit.py, eviction.py, holds.py, pages.py, page_log.py and cache_groups.py (what is
cached beside pages; checkpoints.py and saved_states.py for states, window_group.py) are the inside of the KV cache,
policies/ and first_tokens.py that of the queue, deadlines.py and history.py (facts of ended requests) that of the
request table, slack.py (which steps rows take part in), step_time_model.py and step_cost.py that of the steps in
flight. step_work.py is what a step is made of. meters.py measures where the time of requests goes: the queue has one
meter, the steps in flight another, each stay of a request in the batch a third. lengths.py, priority.py and sizes.py
are rules without state (LEN, PRI, CFG-3), as are admitted.py and prompt_cuts.py (where states are saved). events.py
names the events that are no frames, naming.py how clients name requests. reports.py answers queries and gives the
metrics, with explain.py for sentences; audit.py checks every invariant by name; all of them only read.
"""
