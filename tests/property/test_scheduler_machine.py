"""A Hypothesis state machine over the scheduler core: arrivals, aborts, replays, failures, worker loss, tiny pools.

After every event the rig audits all invariants and the strict worker checks every page a row reads, and of models with
states that each sequence starts from the state of its cached prefix. A consumer of the
KV-cache events holds what the radix tree holds, whenever it has read them. At the end each request has ended exactly
once with the tokens of the oracle, and no page is held.
"""

import os
from typing import Any, Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quartet.wire.config import POLICIES
from quartet.wire.frames import Abort, LiveRequest, LiveRequests, Query, SamplingParams, Stopped
from quartet.wire.ids import Handle, Rid
from scheduler_proc.core.checkpoints import Spacing
from scheduler_proc.kv_events import EventWriter
from tests.support.core_rig import EOS, VOCAB, CoreRig
from tests.support.kv_follower import Follower, held_by
from tests.support.strict_worker import continuation


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.names = 0
        self.dropped: set[Rid] = set()
        self.cut: dict[Rid, int] = {}

    @initialize(
        page_size=st.sampled_from([1, 4, 16, 64]),
        pages=st.integers(12, 40),
        slots=st.integers(1, 6),
        chunk_pages=st.sampled_from([-1, 1, 3]),
        ratio=st.sampled_from([0.05, 0.7]),
        is_sharing=st.booleans(),
        policy=st.sampled_from([*POLICIES, "multi:priority,lpm,lof"]),
        step_order=st.sampled_from(
            ["prefill_first", "prefill_first", "mixed", "decode_first", "decode_first_timed", "slack_timed"]
        ),
        more=st.fixed_dictionaries(
            {
                "radix_eviction_policy": st.sampled_from(
                    ["lru", "lfu", "fifo", "mru", "filo", "priority", "slru", "session"]
                ),
                "enable_priority_scheduling": st.booleans(),
                "priority_scheduling_preemption_threshold": st.integers(0, 3),
                "preempt_accounting": st.sampled_from(["accurate", "compat"]),
                "cache_priority_isolation": st.booleans(),
                "reservation": st.sampled_from(["ratio", "ratio", "blocks", "full", "observed"]),
                "retraction_keeps_kv": st.booleans(),
                "requeue": st.sampled_from(["tail", "head", "age"]),
                "prefill_decode_interval": st.integers(0, 2),
                "tenant_weights": st.sampled_from([(), ("default=1",), ("a=3", "default=0.5")]),
                "tenant_quantum": st.sampled_from([0, 10, 1000]),
                "stream_interval": st.sampled_from([1, 1, 3]),
                "test_retract": st.booleans(),
            }
        ),
        encoding=st.sampled_from(["map", "array"]),
        most_changes=st.sampled_from([1, 20, 1000]),
        checkpoints=st.sampled_from([-1, -1, -1, 0, 1, 3, 40]),
        spacing=st.sampled_from([1, 2, 5]),
        windows=st.sampled_from([(), (), (1,), (9,), (70, 5)]),
        window_spare=st.integers(0, 6),
    )
    def build(
        self,
        page_size: int,
        pages: int,
        slots: int,
        chunk_pages: int,
        ratio: float,
        is_sharing: bool,
        policy: str,
        step_order: str,
        more: dict[str, Any],
        encoding: Literal["map", "array"],
        most_changes: int,
        checkpoints: int,
        spacing: int,
        windows: tuple[int, ...],
        window_spare: int,
    ) -> None:
        more["retraction_keeps_kv"] &= is_sharing
        if policy == "shortest-prefill-first" and not is_sharing:
            policy = "lpm"
        if policy.startswith("multi:"):
            more = {**more, "tenant_weights": ()}
        if step_order == "mixed":
            more = {**more, "enable_mixed_chunk": True}
        elif step_order != "prefill_first":
            order = step_order.removesuffix("_timed")
            more = {**more, "step_order": order, "tbt_target_ms": 5.0 * step_order.endswith("_timed")}
        if more["enable_priority_scheduling"] and ratio > 0.5:
            more = {**more, "retraction_policy": "priority"}
        pages = pages if page_size > 1 else pages * 4
        pools = []
        for window in windows:
            # As WindowPool has them: what a request alone needs, and no more than the pool of group 0.
            least = -(-window // page_size) + (chunk_pages if chunk_pages > 0 else pages) + 4
            pools.append((window, min(pages, least + window_spare)))
        self.rig = CoreRig(
            pages=pages,
            windows=tuple(pools),
            page_size=page_size,
            slots=slots,
            chunked_prefill_size=chunk_pages * page_size if chunk_pages > 0 else -1,
            init_new_token_ratio=ratio,
            disable_radix_cache=not is_sharing,
            schedule_policy=policy,
            checkpoints=checkpoints,
            spacing=Spacing(spacing * page_size, page_size),
            **more,
        )
        for length in range(60):
            self.rig.scheduler._table._lengths.note("", length % (pages + 1))
        self.rig.scheduler.kv.keep_log(most_changes)
        self.writer, self.follower = EventWriter(page_size, encoding), Follower(page_size)

    @rule(
        shared=st.one_of(st.integers(0, 40), st.integers(0, 200)),
        own=st.lists(st.integers(1, 3), min_size=1, max_size=6),
        max_new=st.integers(0, 40), ignore_eos=st.booleans(), priority=st.one_of(st.none(), st.integers(-4, 4)),
        salt=st.sampled_from(["", "", "", "pepper"]), tenant=st.sampled_from(["", "", "a", "b"]),
        session=st.sampled_from(["", "s", "t"]),
    )  # fmt: skip
    def arrive(
        self,
        shared: int,
        own: list[int],
        max_new: int,
        ignore_eos: bool,
        priority: int | None,
        salt: str,
        tenant: str,
        session: str,
    ) -> None:
        self.names += 1
        prompt = [i % 5 + 1 for i in range(shared)] + own
        params = SamplingParams(max_new_tokens=max_new, ignore_eos=ignore_eos)
        fields = {"priority": priority, "cache_salt": salt, "tenant": tenant, "session_id": session}
        self.rig.submit(prompt, name=self.names, params=params, **fields)

    @rule(count=st.integers(1, 8))
    def work(self, count: int) -> None:
        for _ in range(count):
            self.rig.now += 0.003
            self.rig.step()

    def _live(self) -> list[Rid]:
        return [rid for (rid, _), stream in self.rig.streams.items() if stream.ending is None]

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(self._live()))
        self.rig.send(Abort(rid))
        self.rig.streams[rid, 0].ending = "aborted"
        self.dropped.add(rid)

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(self._live()))
        outputs = self.rig.outputs(rid)
        del outputs[data.draw(st.integers(0, len(outputs))) :]
        self.rig.resubmit(rid)

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        opened = {rid: handle for handle, (rid, _) in self.rig.handles.items()}
        candidates = [rid for rid in self._live() if rid in opened and self.rig.outputs(rid)]
        if not candidates:
            return
        rid = data.draw(st.sampled_from(candidates))
        stream = self.rig.streams[rid, 0]
        count = data.draw(st.integers(1, len(stream.outputs)))
        self.rig.send(Stopped(Handle(opened[rid]), rid, 0, stream.submit.attempt, count))
        stream.ending = "stop string"
        self.dropped.add(rid)

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def live_set(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self._live()))
        live = [LiveRequest(rid, 0, 0) for rid in self._live() if rid != gone]
        for _ in range(2):
            self.rig.send(LiveRequests("api-0", live))
        self.rig.streams[gone, 0].ending = "forgotten"
        self.dropped.add(gone)

    @rule(pause=st.booleans(), was_killed=st.booleans())
    def lose_worker(self, pause: bool, was_killed: bool) -> None:
        self.rig.worker_lost(was_killed)
        if pause:
            self.names += 1
            self.rig.submit([1, 2, 3], 4, name=self.names)
        self.rig.worker_up()

    @precondition(lambda self: self.rig.steps)
    @rule()
    def fail_step(self) -> None:
        self.rig.fail_step()

    @rule()
    def flush(self) -> None:
        self.rig.send(Query(1, "api-0", "flush"))

    @rule()
    def read_events(self) -> None:
        kv = self.rig.scheduler.kv
        for payload in self.writer.messages(kv.take_page_changes(), self.rig.now):
            self.follower.take(payload)
        assert self.follower.held() == held_by(kv.tree)

    @invariant()
    def never_more_than_two_steps_outstanding(self) -> None:
        if hasattr(self, "rig"):
            assert len(self.rig.steps) <= 2

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.rig.run()
        assert self.rig.scheduler.is_idle()
        self.read_events()
        for (rid, _), stream in self.rig.streams.items():
            assert stream.ending is not None
            if rid in self.dropped or stream.ending not in ("stop", "length"):
                continue
            prompt = list(_ids(stream.submit.prompt_ids))
            params = stream.submit.params
            limit = len(stream.outputs) if stream.ending == "length" else params.max_new_tokens or 0
            eos = -1 if params.ignore_eos else EOS
            assert stream.outputs == continuation(prompt, limit, VOCAB, eos)


def _ids(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=int(os.environ.get("QUARTET_EXAMPLES", "600")),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
